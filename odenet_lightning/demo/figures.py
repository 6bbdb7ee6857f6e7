"""The page's figures: tensors -> pictures in HTML, each with a text alternative."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from odenet_lightning.demo.computing import TIMES, Plane
from odenet_lightning.figures import SIGNED, new_figure, release, series_style, tile

LEFT, RIGHT = 0.13, 0.97  # where the curves' axis begins and ends, in widths of the figure


def as_html(picture: Image.Image, description: str, kind: str) -> str:
    """A picture as an element of the page; `kind` is its class in the page's style sheet."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{kind}" alt="{escape(description, quote=True)}" src="data:image/png;base64,{data}">'


def drawn(figure: Figure) -> Image.Image:
    """A figure's pixels; the figure is emptied."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    release(figure)
    return picture


def digit(pixels: Tensor) -> str:
    """A digit, uint8 `[28, 28]`, as the network sees it."""
    return as_html(Image.fromarray(pixels.numpy()), "The digit as the network sees it, 28 by 28 pixels", "pixels")


def feature_maps(states: Tensor, index: int) -> str:
    """The state of one digit at a time, `[T, 1, C, H, W]`, one colour scale for all times; at most 16 channels."""
    shown = states[:, 0, :16]
    largest = float(shown.abs().max().clamp(min=1e-6))
    columns = 3 if shown.size(1) <= 6 else 4
    sheet = tile(shown[index], columns, 2, fill=float("nan"))
    values = matplotlib.colormaps[SIGNED](((sheet / largest + 1) / 2).numpy(), bytes=True)
    values[sheet.isnan().numpy()] = 0  # transparent
    return as_html(Image.fromarray(values), f"The state's channels at t = {TIMES[index]:g}", "pixels")


def curves(read: Tensor, names: Sequence[str], steps: Sequence[float]) -> str:
    """How the head would answer at each time, `[T, K]`: K curves over t, and where the solver's steps began."""
    figure = new_figure(4.4, 3.4)
    figure.set_layout_engine("none")
    axes = figure.add_axes((LEFT, 0.13, RIGHT - LEFT, 0.82))
    highest = set(read[[0, -1]].argmax(1).tolist()) | set(read[-1].topk(2).indices.tolist())
    for k, curve in enumerate(read.T.numpy() * 100):
        style: dict[str, Any] = series_style(k) if k in highest else {"color": "0.8"}
        axes.plot(TIMES, curve, **style, markevery=4, label=names[k] if k in highest else None)
    axes.plot(steps, [0] * len(steps), "|", color="black", markersize=12, clip_on=False, label="steps begin")
    axes.set(xlim=(0, 1), ylim=(0, 101), xlabel="t")
    axes.set_ylabel("probability, %", labelpad=1)
    axes.legend(loc="center left", fontsize=8)
    first, last = (names[int(read[at].argmax())] for at in (0, -1))
    description = f"At t = 0 the head would read {first}, at t = 1 {last}"
    return as_html(drawn(figure), description, "chart")


def with_time(curves: str, index: int) -> str:
    """The curves with a line at a time, laid over the picture: drawing it again would double the time of an update."""
    left = 100 * (LEFT + (RIGHT - LEFT) * TIMES[index])
    return f'<div class="over">{curves}<i style="left:{left:.1f}%"></i></div>'


def flow(plane: Plane, mine: Tensor, names: Sequence[str], index: int) -> str:
    """All digits of the plane at a time, each drawn as what it is, and one's own, `[T, 1, 2]`, as a star."""
    figure = new_figure(3.6, 3.4)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    points = plane.points[index]
    for k, name in enumerate(names):
        x, y = points[plane.labels == k].T.numpy()
        axes.scatter(x, y, c=f"C{k % 10}", marker=f"${name[:2]}$", s=22, linewidths=0.2)
    x, y = mine[index].T.numpy()
    axes.scatter(x, y, c="black", marker="*", s=260, edgecolors="white", zorder=3)
    low, high = plane.points.flatten(0, 1).amin(0).tolist(), plane.points.flatten(0, 1).amax(0).tolist()
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
    description = f"{len(points)} digits in a plane at t = {TIMES[index]:g}; yours is the star"
    return as_html(drawn(figure), description, "chart")
