"""Is memory a problem? Time, memory and error of each way to differentiate a solve."""

import copy
import statistics
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from odenet_lightning.block import recorded_solves
from odenet_lightning.figures import caption, log_axis, new_figure, series_style
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, Reversible
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.solvers import Dopri5, Midpoint, RungeKutta, Solver, SolverError
from odenet_lightning.solvers import Reversible as ReversibleSolver
from odenet_lightning.studies.columns import Column, duration, size
from odenet_lightning.studies.memory import HeldBytes, LiveBytes
from odenet_lightning.studies.networks import TrainedBefore
from odenet_lightning.studies.study import REFERENCE_TOLERANCE, Row, number

GRADIENTS: dict[str, Gradient] = {
    "Backprop": Backprop(),
    "Checkpoint": Checkpoint(),
    "Checkpoint, 4 slots": Checkpoint(slots=4),
    "Reversible": Reversible(),
    "Adjoint": Adjoint(),
    "Adjoint, seminorm": Adjoint(seminorm=True),
    "Adjoint as in torchdiffeq": Adjoint(normalise=False),
}
GIB = 2**30


def flat_gradient(net: Classifier) -> Tensor:
    """All parameters' gradients in one vector, float64."""
    return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])


MEASURED = (
    *("seconds", "nfe_forward", "nfe_backward", "held_bytes", "peak_bytes", "images_per_gib"),
    *("relative_error", "cosine"),
)

COLUMNS = (
    Column("gradient", is_text=True),
    Column("rtol", "rtol", says="tolerance of Dopri5, rtol = atol"),
    Column("num_steps", "steps", says="of Midpoint over [0, 1], where there is no tolerance"),
    Column("seconds", "time per step", duration),
    Column("nfe_forward", "NFE for.", says="evaluations of the field in the forward pass"),
    Column("nfe_backward", "NFE back.", says="in the backward pass, those of steps replayed among them"),
    Column("held_bytes", "kept", size, says="the most that autograd holds at a time for the backward pass"),
    Column("peak_bytes", "peak", size, says="the most that all tensors of a step take at a time"),
    Column("relative_error", "error", says="of the whole gradient, relative to one in float64 at 1e-8"),
)


@dataclass
class Gradients(TrainedBefore):
    """Time, memory and error of a training step under each gradient method.

    Two sweeps: Dopri5 over tolerances, and Midpoint over numbers of steps (the depth); the gradient `Reversible` takes
    them within the solver `Reversible`, whose steps cost twice as many evaluations. The peak is without parameters and
    optimiser: on CUDA the allocator's own count, on the CPU `LiveBytes`, to which allocators add. Without a
    checkpoint, the network is randomly initialised.

    Args:
        tolerances: of Dopri5, rtol = atol.
        depths: numbers of midpoint steps.
        batch_size: images per step.
        repeats: timed steps per case, of which the median counts.
    """

    tolerances: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    depths: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    batch_size: int = 32
    repeats: int = 5

    quick: ClassVar[dict[str, Any]] = {
        **{"tolerances": [1e-1, 1e-3, 1e-5], "depths": [1, 4, 16]},
        **{"batch_size": 16, "repeats": 3},
    }
    sweeps: ClassVar[tuple[str, ...]] = ("tolerances", "depths")
    columns: ClassVar[tuple[Column, ...]] = COLUMNS

    def cases(self) -> list[Row]:
        """Gradient methods under both sweeps."""
        sweep = [(rtol, None) for rtol in self.tolerances] + [(None, steps) for steps in self.depths]
        return [{"gradient": name, "rtol": rtol, "num_steps": n} for rtol, n in sweep for name in GRADIENTS]

    def network(self, solver: Solver, gradient: Gradient) -> Classifier:
        """The studied network with another solver and gradient, without warm steps, so that all start alike."""
        torch.manual_seed(self.seed)
        net = self.loaded() or ODENet()
        for block in net.ode_blocks:
            block.solver, block.gradient, block.warm_step = copy.copy(solver), gradient, None
        return net.to(self.device).eval()

    def loss(self, net: Classifier) -> Tensor:
        """Of the first training images."""
        images, labels = self.images("train", self.chosen("train", self.batch_size))
        return F.cross_entropy(net(images.to(next(net.parameters()).dtype)), labels)

    @cached_property
    def exact(self) -> Tensor:
        """The gradient in float64, solved once."""
        net = self.network(Dopri5(REFERENCE_TOLERANCE, REFERENCE_TOLERANCE), Checkpoint()).double()
        self.loss(net).backward()
        return flat_gradient(net)

    def peak_bytes(self, net: Classifier) -> int:
        """The most that the tensors of a step take at a time."""
        net.zero_grad()
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.loss(net).backward()
            return torch.cuda.max_memory_allocated() - before
        with LiveBytes() as live:
            self.loss(net).backward()
        return live.peak

    def measure(self, case: Row) -> Row:
        """Time, bytes, evaluations and error of one case; empty, with n = 0, where its solve cannot be finished."""
        try:
            return self._measured(case)
        except SolverError as error:
            print(f"{case['gradient']}: {error}")
            return {**dict.fromkeys(MEASURED), "n": 0}

    def _measured(self, case: Row) -> Row:
        method: RungeKutta = (
            Midpoint(num_steps=int(number(case, "num_steps")))
            if case["rtol"] is None
            else Dopri5(number(case, "rtol"), number(case, "rtol"))
        )
        gradient = GRADIENTS[str(case["gradient"])]
        solver = ReversibleSolver(method) if isinstance(gradient, Reversible) else method
        net = self.network(solver, gradient)
        cuda = self.device.startswith("cuda")
        seconds = []
        for _ in range(1 + self.repeats):  # the first one warms up
            net.zero_grad()
            begin = time.perf_counter()
            self.loss(net).backward()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        net.zero_grad()
        with recorded_solves(net) as solves, HeldBytes(net) as held:
            self.loss(net).backward()
        found, exact = flat_gradient(net), self.exact
        peak = self.peak_bytes(net)
        return {
            "seconds": statistics.median(seconds[1:]),
            "nfe_forward": sum(solve.evaluations for solve in solves),
            "nfe_backward": sum(solve.backward.evaluations for solve in solves if solve.backward),
            "held_bytes": held.peak,
            "peak_bytes": peak,
            "images_per_gib": GIB * len(self.chosen("train", self.batch_size)) // peak,
            "relative_error": float((found - exact).norm() / exact.norm()),
            "cosine": float(F.cosine_similarity(found, exact, dim=0)),
            "n": self.repeats,
        }

    def answer(self, rows: list[Row]) -> str:
        """Whether memory is a problem."""
        return in_words(rows, self.batch_size)

    def draw(self, rows: list[Row]) -> Figure:
        """Error, time and evaluations over tolerances; images that fit over depths."""
        figure = new_figure(8.3, 7.4)
        (error, seconds), (backward, images) = figure.subplots(2, 2)
        adaptive = [row for row in rows if row["rtol"] is not None]
        fixed = [row for row in rows if row["num_steps"] is not None]
        draw_lines(error, adaptive, "rtol", "relative_error", "error of the whole gradient")
        draw_lines(seconds, adaptive, "rtol", "seconds", f"seconds per training step of {self.batch_size} images")
        draw_lines(backward, adaptive, "rtol", "nfe_backward", "evaluations in the backward pass")
        draw_lines(images, fixed, "num_steps", "images_per_gib", "images per step that fit into 1 GiB")
        for axes in (error, seconds, backward):
            axes.set_xlabel("Dopri5's tolerance")
            axes.invert_xaxis()
        images.set_xlabel("midpoint steps over [0, 1]")
        log_axis(images, "x", base=2)
        figure.legend(*error.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        caption(
            figure,
            "Tolerance: rtol = atol. Error: norm of the difference from a float64 gradient, solved at 1e-8, over its "
            "norm. An evaluation is one of the field f(t, y); Backprop takes none in the backward pass. Checkpoint "
            "replays steps, with 4 slots from at most four kept states; Reversible computes them backward; Adjoint "
            "solves a second ODE backward, with the seminorm under an error norm that leaves out the parameters, as in "
            "torchdiffeq without normalising the cotangent.",
        )
        return figure


def at(row: Row) -> tuple[object, object]:
    """The solver's setting."""
    return row["rtol"], row["num_steps"]


def draw_lines(axes: Axes, rows: list[Row], x: str, y: str, title: str) -> None:
    """A line for each gradient method, on logarithmic axes."""
    for index, name in enumerate(GRADIENTS):
        points = [(row[x], row[y]) for row in rows if row["gradient"] == name and row[y]]
        axes.plot(*zip(*points, strict=True), label=name, **series_style(index)) if points else None
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)


def in_words(rows: list[Row], batch_size: int) -> str:
    """Whether a batch fits at the most evaluations that plain backpropagation took, and what Checkpoint saves."""
    plain = [row for row in rows if row["gradient"] == "Backprop" and row["n"]]
    hardest = max(plain, key=lambda row: number(row, "nfe_forward"), default=None)
    if hardest is None:
        return "no plain backpropagation could be finished, with which others would be compared."
    batches = number(hardest, "images_per_gib") / batch_size
    text = (
        f"{'no' if batches >= 1 else 'yes'}: at {number(hardest, 'nfe_forward'):.0f} evaluations forward, 1 GiB "
        f"holds {batches:.1f} batches of {batch_size} with Backprop"
    )
    others = {row["gradient"]: row for row in rows if row["n"] and at(row) == at(hardest)}
    if "Checkpoint" in others:
        peak, time = (number(others["Checkpoint"], k) / number(hardest, k) for k in ("peak_bytes", "seconds"))
        text += f"; Checkpoint takes {peak:.2f} of its peak memory in {time:.2f} of its time"
    return text + "."
