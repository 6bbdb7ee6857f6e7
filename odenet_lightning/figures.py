"""Arrays -> matplotlib figures. No files, no trainer, no global state: each figure stands alone."""

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullLocator
from torch import Tensor


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, drawn by Agg and unknown to pyplot, so that nothing piles up."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=0.05), dpi=100)
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


def signed_scale(values: Tensor) -> dict[str, Any]:
    """The colours of signed values, for `imshow`: as far below zero as above, and full for the largest per cent.

    So that weak states, such as y(0), can be seen beside a few strong pixels.
    """
    largest = float(values.detach().float().abs().nan_to_num(0.0).flatten().quantile(0.99).clamp(min=1e-6))
    return {"cmap": SIGNED, "vmin": -largest, "vmax": largest}


def log_axis(axes: Axes, name: Literal["x", "y"], base: Literal[2, 10] = 10) -> None:
    """Make an axis logarithmic, with ticks at powers of its base alone and none between them.

    In a range of few powers of ten there are ticks at 1, 2 and 5 times these.
    """
    axis = getattr(axes, f"{name}axis")
    getattr(axes, f"set_{name}scale")("log", base=base)
    low, high = sorted(getattr(axes, f"get_{name}lim")())
    is_short = base == 10 and math.log10(high / low) < 2.2
    axis.set_major_locator(LogLocator(base, (1, 2, 5) if is_short else (1,), numticks=14))
    axis.set_minor_locator(NullLocator())
    is_plain = base == 2 or (low > 1e-3 and high < 1e5)
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}" if value >= 1 else f"{value:.4g}")
    axis.set_major_formatter(plain if is_plain else LogFormatterSciNotation(base))


def caption(figure: Figure, text: str) -> None:
    """Say below a figure, in lines of its width, what is drawn and what its terms mean."""
    figure.supxlabel(text.replace("f(t, y)", "f(t,\xa0y)"), x=0.01, ha="left", fontsize=8, wrap=True)


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
    axes.set_title(f"true against predicted classes: {right} of {int(counts.sum())} right", fontsize=11)
    return figure


def tile(images: Tensor, columns: int, gap: int | tuple[int, int], fill: float) -> Tensor:
    """Images `[N, H, W]` or `[N, C, H, W]` side by side in rows, with a gap (down, across) between them: one picture.

    Drawn as one, since every axes of a figure costs more time than a hundred small pictures.
    """
    down, across = (gap, gap) if isinstance(gap, int) else gap
    (count, *channels), (height, width) = images.shape[:-2], images.shape[-2:]
    rows = -(-count // columns)
    sheet = images.new_full((*channels, rows * (height + down) - down, columns * (width + across) - across), fill)
    for index, image in enumerate(images):
        top, left = index // columns * (height + down), index % columns * (width + across)
        sheet[..., top : top + height, left : left + width] = image
    return sheet


def show(axes: Axes, image: Tensor, **place: Any) -> None:
    """Draw an image in [-1, 1]: in colour `[3, H, W]`, else grey `[H, W]` or the first channel of `[C, H, W]`.

    What is NaN is left white.
    """
    image = image.detach().cpu().float()
    if image.dim() == 3 and len(image) == 3:
        axes.imshow(((image.movedim(0, -1) + 1) / 2).clamp(0, 1).nan_to_num(1.0).numpy(), **place)
    else:
        grey = image if image.dim() == 2 else image[0]
        axes.imshow(grey.numpy(), cmap="gray", vmin=-1, vmax=1, **place)


PICTURE, ROW, LINE = 0.95, 8.6, 0.15  # inches of a sheet of digits: a picture's longer side, a row at most, a line
LONGEST = 18  # characters of a line above a picture


def broken(text: str) -> list[str]:
    """A text's lines, of which long ones are broken at spaces and behind underscores, and words that are too long."""
    wrapper = textwrap.TextWrapper(LONGEST, break_on_hyphens=False)
    wrapper.wordsep_simple_re = re.compile(r"(\s+|(?<=_))")
    return [part for line in text.split("\n") for part in wrapper.wrap(line)]


def draw_digits(images: Tensor, titles: Sequence[str], title: str, columns: int = 8) -> Figure:
    """Digits in a grid, each with a few lines of text above. The figure is as large as they need.

    Args:
        images: `[N, H, W]` or `[N, C, H, W]`, in [-1, 1].
        titles: N short texts; their lines are broken where they are long.
        title: of the whole figure; also what is shown where N is 0.
        columns: digits per row, at most.
    """
    texts = [broken(text) for text in titles]
    lines = {part for text in texts for part in text}
    cell = max([PICTURE, *(TextPath((0, 0), line, size=8).get_extents().width / 72 for line in lines)]) + 0.1
    columns = max(1, min(columns, int(ROW / cell), len(images)))
    rows, height, width = -(-len(images) // columns), *images.shape[-2:]
    scale = PICTURE / max(height, width)  # inches per pixel
    across = round(cell / scale) - width
    down = round((LINE * max(map(len, texts), default=0) + 0.12) / scale)
    size = scale * columns * (width + across), scale * rows * (height + down)
    wide = max(size[0], 3.5)
    heads = textwrap.wrap(title, int(wide / 0.09))
    head = 0.2 * len(heads) + 0.1
    figure = new_figure(wide, size[1] + head)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, size[1] / (size[1] + head)))
    axes.axis("off")
    axes.set_title("\n".join(heads), fontsize=10)
    if len(images) == 0:
        return figure
    show(axes, tile(images.detach().cpu().float(), columns, (down, across), fill=float("nan")))
    margin = (wide - size[0]) / 2 / scale + across / 2
    axes.set(xlim=(-margin - 0.5, wide / scale - margin - 0.5), ylim=(rows * (height + down) - down + 1, -down + 1))
    for index, text in enumerate(texts):
        x, y = index % columns * (width + across) + width / 2, index // columns * (height + down) - 0.04 / scale
        axes.text(x, y, "\n".join(text), ha="center", va="bottom", fontsize=8)
    return figure


def draw_feature_maps(image: Tensor, states: Tensor, times: Sequence[float]) -> Figure:
    """One image's state on its way through an ODE block: channels down, time across, the image beside the first one.

    Args:
        image: `[H, W]` or `[C, H, W]`.
        states: `[T, C, H', W']`; at most 8 channels are drawn.
        times: T times in [0, 1].
    """
    states = states.detach().cpu().float()[:, :8]
    count, channels, height, width = states.shape
    gap = max(2, round(0.1 * width))
    scale = 1.1 / max(height, width)  # inches per pixel of a map
    sheet = tile(states.transpose(0, 1).flatten(0, 1), count, gap, fill=float("nan"))
    left = -width - 4 * gap
    figure = new_figure(scale * (sheet.shape[1] - left) + 1.1, scale * sheet.shape[0] + 1.05)
    axes = figure.subplots()
    drawn = axes.imshow(sheet.numpy(), extent=(0, sheet.shape[1], sheet.shape[0], 0), **signed_scale(states))
    show(axes, image, extent=(left, left + width, height, 0))
    axes.add_patch(Rectangle((0, 0), sheet.shape[1], sheet.shape[0], color=PAPER, zorder=-1))
    axes.set(xlim=(left, sheet.shape[1]), ylim=(sheet.shape[0], 0))
    middles = [left + width / 2, *(i * (width + gap) + width / 2 for i in range(count))]
    axes.set_xticks(middles, ["image", *(f"t = {time:g}" for time in times)])
    axes.set_yticks([i * (height + gap) + height / 2 for i in range(channels)], [str(i + 1) for i in range(channels)])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines["left"].set_position(("data", 0))  # channels are numbered beside the maps
    axes.set_title("state y(t) of one image", fontsize=11)
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, label="state y(t)", shrink=0.8, extend="both")
    caption(figure, "Rows: channels. The layers before make y(0) of the image; dy/dt = f(t, y). One scale, white at 0.")
    return figure


def contact_sheet(
    images: Tensor, names: Sequence[str], predictions: Sequence[str], confidences: Sequence[float], kind: str = "class"
) -> Figure:
    """Predictions for the user's images, drawn as the network saw them; at most 64 are drawn.

    Args:
        images: `[N, C, H, W]` in [-1, 1].
        names: N file names.
        predictions: N names of classes.
        confidences: N probabilities of them.
        kind: what a class is, such as "digit".
    """
    shown = images[:64]
    titles = [
        f"{shorten(prediction, 4 * LONGEST)} ({confidence:.0%})\n{shorten(name, 4 * LONGEST)}"
        for prediction, confidence, name in zip(predictions, confidences, names, strict=True)
    ][: len(shown)]
    count = f"{len(images)} pictures" + (f", the first {len(shown)}" if len(images) > len(shown) else "")
    return draw_digits(shown, titles, f"{count}: predicted {kind} (its probability) and file")


def shorten(name: str, length: int = 14) -> str:
    """A file name in few characters, free of line breaks and of matplotlib's formula sign."""
    plain = "".join(c if c.isprintable() and c != "$" else "?" for c in name)
    return plain if len(plain) <= length else plain[: length - 1] + "…"
