"""Arrays -> matplotlib figures. No files, no trainer, no global state: each figure stands alone."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, drawn by Agg and unknown to pyplot, so that nothing piles up."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure


def release(figure: Figure) -> None:
    """Empty a figure that is done with. It and its canvas point at each other, and megabytes would wait for Python."""
    canvas = figure.canvas
    figure.clear()
    canvas.renderer = None  # pyright: ignore[reportAttributeAccessIssue] -- Agg's buffer of pixels
    canvas.figure = figure.canvas = None  # type: ignore[assignment]


# for signed values: white is 0, blue below it, red above it; between pictures on it the paper is grey
SIGNED, PAPER = "RdBu_r", "0.85"
# black, orange, blue, sky, green, purple, grey (Okabe and Ito 2008): told apart by every eye, and by markers in grey
COLOURS = ("#000000", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#888888")
MARKERS = "os^Dv*X"
LINES = ("-", "--", "-.", ":", "-", "--", "-.")


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and line of the index-th series of a figure, for `Axes.plot`."""
    index %= len(COLOURS)
    return {
        "color": COLOURS[index],
        "marker": MARKERS[index],
        "linestyle": LINES[index],
        "markersize": 5,
        "markerfacecolor": "white" if index % 2 else COLOURS[index],
    }


def draw_confusion(counts: Tensor, names: Sequence[str] | None = None) -> Figure:
    """The confusion matrix as a table of counts, coloured by the share of each true class.

    Args:
        counts: `[K, K]`, rows true, columns predicted.
        names: of the K classes, by default their numbers.
    """
    size = max(6.0, 0.36 * len(counts) + 1.0)  # inches; a cell has room for three digits
    figure = new_figure(size, 0.9 * size)
    axes = figure.subplots()
    counts = counts.detach().cpu()
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # the square root makes rare confusions visible beside a diagonal near 1
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    classes = range(len(counts))
    names = names or [str(index) for index in classes]
    long = max(map(len, names)) > 4
    axes.set_xticks(classes, names, rotation=40 if long else 0, ha="right" if long else "center")
    axes.set_yticks(classes, names)
    axes.set(xlabel="predicted", ylabel="true")
    for row in classes:
        for column in classes:
            if counts[row, column]:
                colour = "white" if share[row, column] > 0.4 else "black"
                axes.text(
                    column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, fontsize=8
                )
    right = int(counts.diagonal().sum())
    axes.set_title(f"{right} of {int(counts.sum())} right")
    return figure


def tile(images: Tensor, columns: int, gap: int, fill: float) -> Tensor:
    """Images `[N, H, W]` or `[N, C, H, W]` side by side in rows, with a gap between them: one picture.

    Drawn as one, since every axes of a figure costs more time than a hundred small pictures.
    """
    (count, *channels), (height, width) = images.shape[:-2], images.shape[-2:]
    rows = -(-count // columns)
    sheet = images.new_full((*channels, rows * (height + gap) - gap, columns * (width + gap) - gap), fill)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[..., top : top + height, left : left + width] = image
    return sheet


def show(axes: Axes, image: Tensor) -> None:
    """Draw an image in [-1, 1]: in colour `[3, H, W]`, else grey `[H, W]` or the first channel of `[C, H, W]`.

    What is NaN is left white.
    """
    image = image.detach().cpu().float()
    if image.dim() == 3 and len(image) == 3:
        axes.imshow(((image.movedim(0, -1) + 1) / 2).clamp(0, 1).nan_to_num(1.0).numpy())
    else:
        axes.imshow((image if image.dim() == 2 else image[0]).numpy(), cmap="gray")


def draw_digits(images: Tensor, titles: Sequence[str], title: str, columns: int = 8) -> Figure:
    """Digits in a grid, each with a line or two of text above.

    Args:
        images: `[N, H, W]` or `[N, C, H, W]`, in [-1, 1].
        titles: N short texts.
        title: of the whole figure; also what is shown where N is 0.
        columns: digits per row.
    """
    rows = max(1, -(-len(images) // columns))
    lines = 1 + max((text.count("\n") for text in titles), default=0)
    figure = new_figure(1.05 * columns, (1.0 + 0.25 * lines) * rows + 0.5)
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(title, pad=24)
    if len(images) == 0:
        return figure
    height, width = images.shape[-2:]
    gap = lines * height // 3
    show(axes, tile(images.detach().cpu().float(), columns, gap, fill=float("nan")))
    for index, text in enumerate(titles):
        x = index % columns * (width + gap) + width / 2
        axes.text(x, index // columns * (height + gap) - 1.5, text, ha="center", va="bottom", fontsize=8)
    return figure


def draw_feature_maps(image: Tensor, states: Tensor, times: Sequence[float]) -> Figure:
    """One image's state on its way through an ODE block: channels down, time across.

    Args:
        image: `[H, W]` or `[C, H, W]`.
        states: `[T, C, H', W']`; at most 8 channels are drawn.
        times: T times in [0, 1].
    """
    states = states.detach().cpu().float()[:, :8]
    count, channels, height, width = states.shape
    figure = new_figure(1.15 * (count + 1) + 0.6, 1.15 * channels + 0.5)
    picture, maps = figure.subplots(1, 2, width_ratios=[1, count])
    show(picture, image)
    picture.set(xticks=[], yticks=[], title="image", anchor="N")
    gap = 3
    sheet = tile(states.transpose(0, 1).flatten(0, 1), count, gap, fill=float("nan"))
    largest = float(states.abs().max())
    drawn = maps.imshow(sheet.numpy(), cmap=SIGNED, vmin=-largest, vmax=largest)
    maps.set_xticks([i * (width + gap) + width / 2 for i in range(count)], [f"t = {time:g}" for time in times])
    maps.set_yticks([i * (height + gap) + height / 2 for i in range(channels)], [str(i + 1) for i in range(channels)])
    maps.xaxis.tick_top()
    maps.tick_params(length=0)
    maps.set(ylabel="channel", anchor="N", facecolor=PAPER)
    maps.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=maps, label="state y(t), one scale for all", shrink=0.8)
    return figure


def contact_sheet(
    images: Tensor, names: Sequence[str], predictions: Sequence[str], confidences: Sequence[float]
) -> Figure:
    """Predictions for the user's images, drawn as the network saw them; at most 64 are drawn.

    Args:
        images: `[N, C, H, W]` in [-1, 1].
        names: N file names.
        predictions: N names of classes.
        confidences: N probabilities of them.
    """
    shown = images[:64]
    titles = [
        f"{shorten(prediction, 10)} ({confidence:.0%})\n{shorten(name)}"
        for prediction, confidence, name in zip(predictions, confidences, names, strict=True)
    ][: len(shown)]
    left_out = len(images) - len(shown)
    return draw_digits(shown, titles, f"{len(images)} pictures" + (f", the first {len(shown)}" if left_out else ""))


def shorten(name: str, length: int = 14) -> str:
    """A file name in few characters, free of line breaks and of matplotlib's formula sign."""
    plain = "".join(c if c.isprintable() and c != "$" else "?" for c in name)
    return plain if len(plain) <= length else plain[: length - 1] + "…"
