"""What does the ODE do to a digit? Its state y(t) from t = 0 to 1."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from matplotlib import animation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from odenet_lightning.figures import PAPER, caption, new_figure, signed_scale, tile
from odenet_lightning.models import CLASSES
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.columns import Column, percent
from odenet_lightning.studies.networks import OneNetwork
from odenet_lightning.studies.study import Row, number

TOLERANCE = 1e-4
PANELS = (0.0, 0.5, 1.0)  # times of the projections drawn
MAPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # times of the feature maps drawn
DRAWN = 3  # digits whose feature maps are drawn
SECONDS = 4.0  # the animation's length

COLUMNS = (
    Column("t"),
    Column("accuracy", "head accuracy", percent, says="of the trained head when given y(t) instead of y(1)"),
    Column("norm", "|y(t)|", says="mean Euclidean norm of the state"),
    Column("direction", "cosine", says="of the angle between dy/dt at t and at 0, its mean over the digits"),
    Column("separation", "separation", says="variance between the classes over the variance within them"),
)


@dataclass
class Flow(OneNetwork):
    """States over t: projected to two dimensions, as feature maps, and as classified by the head.

    The projection is onto the first two principal components of y(1), the same at all t. Where the cosine stays at 1,
    trajectories are straight lines.

    Args:
        frames: times from 0 to 1, evenly spaced.
        images_used: validation digits.
    """

    frames: int = 21
    images_used: int = 500

    quick: ClassVar[dict[str, Any]] = {"frames": 9, "images_used": 250, "epochs": 8}
    sweeps: ClassVar[tuple[str, ...]] = ("frames",)
    columns: ClassVar[tuple[Column, ...]] = COLUMNS

    def times(self) -> list[float]:
        """Evenly spaced in [0, 1]."""
        return [index / (self.frames - 1) for index in range(self.frames)]

    def check(self) -> None:
        """Refuse too few digits or frames."""
        super().check()
        if self.images_used < 20:
            raise ValueError(f"images_used must be at least 20, to see classes in them: {self.images_used}")
        if self.frames < 5 or (self.frames - 1) % 4:
            raise ValueError(f"frames must be 5, 9, 13, ..., so that quarters of [0, 1] are among them: {self.frames}")

    def cases(self) -> list[Row]:
        """One per time."""
        return [{"t": t} for t in self.times()]

    @cached_property
    @torch.no_grad()
    def states(self) -> Tensor:
        """y(t) at all times by an accurate solver, `[T, N, C, H, W]`."""
        net = self.network
        net.block.solver = Dopri5(TOLERANCE, TOLERANCE)
        return net.block.trajectory(net.stem(self.seen[0]), self.times())

    @cached_property
    def seen(self) -> tuple[Tensor, Tensor]:
        """The validation images and their labels."""
        return self.images("val", self.chosen("val", self.images_used))

    @torch.no_grad()
    def measure(self, case: Row) -> Row:
        """The head's accuracy, the state's size, direction and separation at a time."""
        t, net = number(case, "t"), self.network
        y0, y = self.states[[0, self.times().index(t)]]
        _, labels = self.seen
        slope, first = (
            net.block.field(torch.tensor(at, device=y.device), y).flatten(1) for at, y in ((t, y), (0.0, y0))
        )
        return {
            "accuracy": float((net.head(y).argmax(1) == labels).float().mean()),
            "norm": float(y.flatten(1).norm(dim=1).mean()),
            "direction": float(F.cosine_similarity(slope, first).mean()),
            "separation": separation(y.flatten(1), labels),
            "n": len(labels),
        }

    def answer(self, rows: list[Row]) -> str:
        """How accuracy, separation and direction change from t = 0 to 1."""
        first, last = rows[0], rows[-1]
        angle = math.degrees(math.acos(max(-1.0, min(1.0, number(last, "direction")))))
        return (
            f"from t = 0 to 1 it takes the head's accuracy from {percent(number(first, 'accuracy'))} to "
            f"{percent(number(last, 'accuracy'))} and the classes' separation from {first['separation']:.2f} to "
            f"{last['separation']:.2f}, while dy/dt turns by {angle:.0f} degrees."
        )

    @torch.no_grad()
    def projected(self) -> Tensor:
        """States on two axes, `[T, N, 2]`."""
        states = self.states.flatten(2)
        torch.manual_seed(self.seed)  # the decomposition starts at random
        centre = states[-1].mean(0)
        _, _, axes = torch.pca_lowrank(states[-1] - centre, q=min(6, *states[-1].shape), center=False)
        return ((states - centre) @ axes[:, :2]).cpu()

    def draw(self, rows: list[Row]) -> Figure:
        """Projections at three times, curves over t, feature maps of a few digits."""
        figure = new_figure(8.3, 8.9)
        grid = figure.add_gridspec(3, 1, height_ratios=[2.7, 2.2, 3.5])
        top, middle, bottom = (figure.add_subfigure(cell) for cell in grid)
        points, times = self.projected(), self.times()
        panels = top.subplots(1, len(PANELS), sharex=True, sharey=True)
        for axes, t in zip(panels, PANELS, strict=True):
            draw_points(axes, points[times.index(t)], self.seen[1])
            axes.set_title(f"{len(points[0])} digits at t = {t:g}", fontsize=10)
        panels[0].set_ylabel("2nd component", fontsize=8)
        panels[1].set_xlabel("1st principal component of y(1)", fontsize=8)
        draw_curves(middle.subplots(1, 3), rows)
        self._maps(bottom.subplots(1, DRAWN))
        caption(
            figure,
            "Top: states y(t), each drawn as its label, on the first two principal components of y(1). Head accuracy: "
            "of the trained head when given y(t) instead of y(1). Separation: variance between the classes over the "
            "variance within them. Cosine: of the angle between dy/dt at t and at 0, mean over the digits. Bottom: "
            "channels of the state, one colour scale for all, white at 0.",
        )
        return figure

    def _maps(self, panels: Any) -> None:
        """Channels down, time across, one digit a panel."""
        states, times = self.states, self.times()
        _, labels = self.seen
        classes = labels.unique()
        digits = classes[[0, len(classes) // 2, -1]].tolist()
        chosen = [int((labels == digit).nonzero()[0]) for digit in digits]
        drawn = states[[times.index(t) for t in MAPS]][:, chosen, :6].cpu()
        for axes, digit, maps in zip(panels, digits, drawn.unbind(1), strict=True):
            sheet = tile(maps.transpose(0, 1).flatten(0, 1), len(MAPS), 2, fill=float("nan"))
            axes.imshow(sheet.numpy(), **signed_scale(drawn))
            axes.set_facecolor(PAPER)
            size = maps.shape[-1] + 2
            axes.set_xticks([i * size + size / 2 for i in range(len(MAPS))], [f"{t:g}" for t in MAPS], fontsize=8)
            rows = range(maps.shape[1])
            axes.set_yticks([i * size + size / 2 for i in rows], [str(i + 1) for i in rows], fontsize=8)
            axes.set_xlabel("t", fontsize=9)
            axes.set_title(f"channels of y(t) of a {self.data().class_names[digit]}", fontsize=10)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("channel", fontsize=9)
        bar = panels[0].figure.colorbar(panels[0].images[0], ax=list(panels), shrink=0.8, pad=0.02, extend="both")
        bar.set_label("state y(t)", fontsize=9)

    def extras(self, rows: list[Row]) -> None:
        """Write the projection as an animation, `flow.gif`, that runs to t = 1 and rests there."""
        points, times = self.projected(), self.times()
        figure = new_figure(4.2, 4.2)
        axes = figure.subplots()
        low, high = limits(points)

        def show(frame: int) -> list[Any]:
            axes.clear()
            draw_points(axes, points[frame], self.seen[1])
            accuracy = number(rows[frame], "accuracy")
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
            axes.set_title(f"t = {times[frame]:.2f}: head accuracy {accuracy:.1%}", fontsize=10)
            return []

        order = forward_and_rest(len(times))
        animated = animation.FuncAnimation(figure, show, frames=order, blit=False, cache_frame_data=False)
        writer = animation.PillowWriter(fps=max(1, round(len(order) / SECONDS)))
        animated.save(self.folder / "flow.gif", writer=writer)


def limits(points: Tensor) -> tuple[list[float], list[float]]:
    """The corners of all points, with room for the labels."""
    low, high = points.flatten(0, 1).amin(0), points.flatten(0, 1).amax(0)
    return (low - 0.04 * (high - low)).tolist(), (high + 0.04 * (high - low)).tolist()


def forward_and_rest(frames: int) -> list[int]:
    """The order in which an animation shows its frames: forward, and the last one as long as half of them."""
    return [*range(frames), *[frames - 1] * (frames // 2)]


def draw_points(axes: Axes, points: Tensor, labels: Tensor) -> None:
    """Each point is drawn as the digit it is, so that classes can be told apart without colour."""
    for digit in range(CLASSES):
        x, y = points[labels.cpu() == digit].T.numpy()
        axes.scatter(x, y, c=f"C{digit}", marker=f"${digit}$", s=22, linewidths=0.2)


def draw_curves(panels: Any, rows: list[Row]) -> None:
    """Accuracy, separation and direction over t."""
    scale = {"accuracy": 100.0, "separation": 1.0, "direction": 1.0}
    labels = ("head accuracy on y(t), %", "separation of the classes", "cosine of dy/dt with dy/dt at 0")
    for axes, key, label in zip(panels, scale, labels, strict=True):
        axes.plot([row["t"] for row in rows], [scale[key] * number(row, key) for row in rows], color="black")
        axes.set_xlabel("t")
        axes.set_title(label, fontsize=9)
        axes.grid(alpha=0.3)


def separation(y: Tensor, labels: Tensor) -> float:
    """The classes' mean squared distance from the centre over the samples' from their class's: Fisher's ratio."""
    classes = F.one_hot(labels, CLASSES).to(y.dtype)
    counts = classes.sum(0)
    means = (classes.T @ y) / counts.clamp(min=1)[:, None]
    between = (counts / counts.sum()) @ (means - y.mean(0)).square().sum(1)
    within = (y - means[labels]).square().sum(1).mean()
    return float(between / within)
