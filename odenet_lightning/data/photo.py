"""A photo of a digit -> its ink: uneven light, frames, ruled lines and specks removed.

Lengths are in units of the picture's shorter side, so that they hold for any resolution.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FAINTEST = 0.1  # least contrast of ink to paper, as a share of the paper's brightness, for a digit to be seen
RULE = 0.7  # a line of at least this length, as a share of the picture's side, ...
RULE_WIDTH = 0.035  # ... and no thicker than this is a ruled line or a frame
SPECK = 0.15  # a part lower and narrower than this share of the digit's height is a speck
AS_HIGH = 0.6  # a part beside the digit, higher than this share of its height, is another digit
PEN = (0.11, 0.2)  # thinnest and thickest pen, as shares of the digit's larger side: about MNIST's
EVERYWHERE = np.ones((3, 3), dtype=bool)  # all eight neighbours


def dilated(mask: Mask, footprint: NDArray[Any], times: int = 1) -> Mask:
    """The mask, grown by a footprint."""
    return np.asarray(ndimage.binary_dilation(mask, footprint, iterations=times), dtype=bool)


def opened(mask: Mask, footprint: NDArray[Any]) -> Mask:
    """The part of the mask that a footprint fits into."""
    return np.asarray(ndimage.binary_opening(mask, footprint), dtype=bool)


def ink_of(grey: Array) -> Array:
    """The ink of the one digit in a grey picture.

    Args:
        grey: `[H, W]` in [0, 1], dark on light or light on dark.

    Returns:
        `[H, W]` in [0, 1], 0 where there is paper.

    Raises:
        ValueError: there is nothing to see, or more than one digit.
    """
    contrast, noise = contrast_to_paper(grey)
    strongest = float(np.quantile(contrast, 1 - 4 / contrast.size)) if contrast.size > 400 else float(contrast.max())
    if strongest < max(FAINTEST, 4 * noise):
        raise ValueError("nothing to see (an even picture)")
    level = max(0.45 * strongest, 3 * noise)
    ruled = contrast > level
    mask = without_lines(ruled)
    digit = digit_in(mask if mask.any() else ruled)
    fringe = dilated(digit, EVERYWHERE, max(1, round(0.01 * min(grey.shape))))
    ink = np.where(fringe & ((mask | ~ruled) if mask.any() else True), contrast, 0.0)
    low = min(level / 2, 0.2 * strongest)
    return with_usual_pen(np.clip((ink - low) / (strongest - low), 0.0, 1.0), digit)


def contrast_to_paper(grey: Array) -> tuple[Array, float]:
    """Each pixel's contrast to the paper beneath it, from 0 to 1 for full ink, and the paper's noise.

    The paper is a quadratic surface, fitted again and again to the pixels that are near it: light that falls off over
    the picture is smooth, and most of a picture is paper.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    values = grey.reshape(-1)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    start = float(np.median(border)) if np.ptp(border) < 0.1 else float(np.median(grey))
    paper, spread = np.full_like(values, start), 0.25
    for _ in range(12):
        near = np.abs(values - paper) < 2.5 * spread
        fits = near.sum() > max(24, 0.1 * near.size)
        if not fits:
            break
        coefficients = np.linalg.lstsq(terms[near], values[near], rcond=None)[0]
        paper = terms @ coefficients
        spread = max(0.02, 0.75 * spread, 1.5 * float(np.median(np.abs(values - paper)[near])))
        spread = min(spread, 0.25)
    difference = (values - paper).reshape(height, width)
    paper = np.clip(paper.reshape(height, width), 0.0, 1.0)
    noise = 1.48 * float(np.median(np.abs(difference)))
    if noise > 0.01:
        difference = ndimage.gaussian_filter(difference, 0.006 * min(height, width))
    darker, lighter = (np.clip(sign * difference - 2 * noise, 0, None) for sign in (-1, 1))
    is_dark = float((darker**2).sum()) >= float((lighter**2).sum())
    contrast = -difference / np.maximum(paper, 0.3) if is_dark else difference / np.maximum(1 - paper, 0.3)
    return np.clip(contrast, 0.0, 1.0), noise


def without_lines(mask: Mask) -> Mask:
    """Ink without the lines that run through the picture: ruled paper, frames; strokes that cross one are kept."""
    kept = mask.copy()
    side = min(mask.shape)
    for flip in (False, True):
        ink, result = (mask.T, kept.T) if flip else (mask, kept)
        thick = max(2, round(RULE_WIDTH * side))
        # noise breaks lines: bridge the gaps
        bridged = np.asarray(ndimage.binary_closing(np.pad(ink, 3), np.ones((1, 5))), dtype=bool)[3:-3, 3:-3]
        runs = opened(bridged, np.ones((1, max(5, round(RULE * ink.shape[1])))))
        thin = runs & ~opened(runs, np.ones((thick + 1, 1)))
        if not thin.any():
            continue
        lines = dilated(thin, np.ones((3, 1)))
        rest = ink & ~lines
        # where there is ink above and below a line, a stroke crosses it
        reach = np.zeros((2 * thick + 3, 1), dtype=bool)
        above, below = reach.copy(), reach.copy()
        above[: thick + 1], below[thick + 2 :] = True, True
        crossed = dilated(rest, above) & dilated(rest, below)
        result &= rest | (crossed & lines & ink)
    return kept


def digit_in(mask: Mask) -> Mask:
    """The parts of the mask that are the digit: the largest one away from the border, and what lies above or below it.

    Raises:
        ValueError: there are several as high as it side by side.
    """
    side = min(mask.shape)
    joined = dilated(mask, EVERYWHERE, max(1, round(0.008 * side)))
    labels = np.zeros(mask.shape, dtype=np.int32)
    count = int(ndimage.label(joined, EVERYWHERE, output=labels))  # pyright: ignore[reportArgumentType]
    boxes = ndimage.find_objects(labels)
    areas = ndimage.sum_labels(mask, labels, range(1, count + 1))
    inside = [i for i in range(count) if not touches_border(boxes[i], mask.shape)] or list(range(count))
    main = max(inside, key=lambda i: areas[i] * extent(boxes[i])[0])
    height, _ = extent(boxes[main])
    rows, columns = boxes[main]
    beside = 0
    parts = [main]
    for i in inside:
        high, wide = extent(boxes[i])
        overlap = min(columns.stop, boxes[i][1].stop) - max(columns.start, boxes[i][1].start)
        if i == main or max(high, wide) < SPECK * height:
            continue
        if overlap > 0.3 * wide:
            gap = max(rows.start, boxes[i][0].start) - min(rows.stop, boxes[i][0].stop)
            if gap < 0.3 * height:
                parts.append(i)
        elif high > AS_HIGH * height:
            beside += 1
    if beside:
        raise ValueError(f"{beside + 1} digits side by side: give each a picture of its own")
    return mask & np.isin(labels, [i + 1 for i in parts])


def extent(box: tuple[slice, slice]) -> tuple[int, int]:
    """Height and width of a box."""
    rows, columns = box
    return rows.stop - rows.start, columns.stop - columns.start


def touches_border(box: tuple[slice, slice], shape: tuple[int, int]) -> bool:
    """Whether a box reaches the picture's border."""
    rows, columns = box
    return rows.start == 0 or columns.start == 0 or rows.stop == shape[0] or columns.stop == shape[1]


def with_usual_pen(ink: Array, digit: Mask) -> Array:
    """The ink with a pen that is neither thinner nor thicker than MNIST's usual ones."""
    rows, columns = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
    size = max(np.ptp(rows), np.ptp(columns)) + 1
    # a strip of width w is w / 4 from its edge on average
    pen = 4 * float(np.asarray(ndimage.distance_transform_edt(digit))[digit].mean())
    change = round(float(np.clip(pen, PEN[0] * size, PEN[1] * size)) - pen)
    if abs(change) < 2:
        return ink
    if change > 0:
        padded = np.pad(ink, change)
        return ndimage.grey_dilation(padded, footprint=disk(change / 2))
    return ndimage.grey_erosion(ink, footprint=disk(-change / 2))


def disk(radius: float) -> Mask:
    """A round footprint."""
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x * x + y * y <= radius * radius + 0.5
