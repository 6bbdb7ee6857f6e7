"""Arrays -> matplotlib figures. No files, no trainer, no global state: each figure stands alone."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, drawn by Agg and unknown to pyplot, so that nothing piles up."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure


def draw_confusion(counts: Tensor) -> Figure:
    """The confusion matrix as a table of counts, coloured by the share of each true class.

    Args:
        counts: `[K, K]`, rows true, columns predicted.
    """
    figure = new_figure(6.0, 5.4)
    axes = figure.subplots()
    counts = counts.detach().cpu()
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # the square root makes rare confusions visible beside a diagonal near 1
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    classes = range(len(counts))
    axes.set(xticks=classes, yticks=classes, xlabel="predicted", ylabel="true")
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


def draw_digits(images: Tensor, titles: Sequence[str], title: str, columns: int = 8) -> Figure:
    """Digits in a grid, each with a line of text above.

    Args:
        images: `[N, H, W]`, the darkest value black.
        titles: N short texts.
        title: of the whole figure; also what is shown where N is 0.
        columns: digits a row.
    """
    rows = max(1, -(-len(images) // columns))
    figure = new_figure(1.05 * columns, 1.25 * rows + 0.4)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, image, text in zip(grid, images.detach().cpu(), titles, strict=False):
        axes.imshow(image.numpy(), cmap="gray")
        axes.set_title(text, fontsize=8)
    return figure


def draw_feature_maps(image: Tensor, states: Tensor, times: Sequence[float]) -> Figure:
    """One digit's state on its way through an ODE block: channels down, time across.

    Args:
        image: the digit, `[H, W]`.
        states: `[T, C, H', W']`; at most 8 channels are drawn.
        times: T times in [0, 1].
    """
    states = states.detach().cpu().float()[:, :8]
    count, channels = states.shape[:2]
    figure = new_figure(1.15 * (count + 1) + 0.6, 1.15 * channels + 0.5)
    grid = figure.subplots(channels, count + 1, squeeze=False)
    for axes in grid.flatten():
        axes.set(xticks=[], yticks=[])
    for axes in grid[1:, 0]:
        axes.axis("off")
    grid[0, 0].imshow(image.detach().cpu().numpy(), cmap="gray")
    grid[0, 0].set_title("digit", fontsize=9)
    largest = float(states.abs().max())
    picture = None
    for column, time in enumerate(times, start=1):
        grid[0, column].set_title(f"t = {time:g}", fontsize=9)
        for channel in range(channels):
            picture = grid[channel, column].imshow(
                states[column - 1, channel].numpy(), cmap="coolwarm", vmin=-largest, vmax=largest
            )
    for channel in range(channels):
        grid[channel, 1].set_ylabel(f"channel {channel + 1}", fontsize=8)
    if picture is not None:
        figure.colorbar(picture, ax=grid[:, -1].tolist(), label="state y(t), one scale for all", shrink=0.8)
    return figure


def contact_sheet(images: Tensor, names: Sequence[str], digits: Sequence[int], confidences: Sequence[float]) -> Figure:
    """What a network says of one's own pictures, as it saw them; at most 64 are drawn.

    Args:
        images: `[N, 28, 28]`.
        names: N file names.
        digits: N predictions.
        confidences: N probabilities of them.
    """
    shown = images[:64]
    titles = [
        f"{digit} ({confidence:.0%})\n{shorten(name)}"
        for digit, confidence, name in zip(digits, confidences, names, strict=True)
    ][: len(shown)]
    left_out = len(images) - len(shown)
    return draw_digits(shown, titles, f"{len(images)} pictures" + (f", the first {len(shown)}" if left_out else ""))


def shorten(name: str, length: int = 14) -> str:
    """A file name in few characters, free of line breaks and of matplotlib's formula sign."""
    plain = "".join(c if c.isprintable() and c != "$" else "?" for c in name)
    return plain if len(plain) <= length else plain[: length - 1] + "…"
