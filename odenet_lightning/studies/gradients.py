"""Is memory a problem? Time, memory and error of each way to differentiate a solve."""

import copy
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from torch import Tensor
from torch.nn import functional as F

from odenet_lightning.block import recorded_solves
from odenet_lightning.figures import new_figure, series_style
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, Reversible
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.solvers import Dopri5, Midpoint, RungeKutta, Solver, SolverError
from odenet_lightning.solvers import Reversible as ReversibleSolver
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


@dataclass
class Gradients(TrainedBefore):
    """Time, memory and error of a training step under each gradient method.

    Two sweeps: Dopri5 over tolerances, and Midpoint over numbers of steps (the depth); the gradient `Reversible` takes
    them within the solver `Reversible`, whose steps cost twice as many evaluations. Errors are of the
    whole network's gradient against one in float64 at a tolerance of 1e-8. `held_bytes` is the most that autograd
    keeps at a time for the backward pass; `peak_bytes` is the most that all tensors of a step take at a time, without
    parameters and optimiser: on CUDA the allocator's own count, on the CPU `LiveBytes`, to which allocators add.
    `images_per_gib` follows from it. Without a checkpoint, the network is randomly initialised.

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
    shown: ClassVar[tuple[str, ...]] = ("gradient", "rtol", "num_steps", *MEASURED, "n")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reference: Tensor | None = None

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

    def exact(self) -> Tensor:
        """The gradient in float64, solved once."""
        if self.reference is None:
            net = self.network(Dopri5(REFERENCE_TOLERANCE, REFERENCE_TOLERANCE), Checkpoint()).double()
            self.loss(net).backward()
            self.reference = flat_gradient(net)
        return self.reference

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
        found, exact = flat_gradient(net), self.exact()
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

    def draw(self, rows: list[Row]) -> Figure:
        """Error, time and evaluations over tolerances; images that fit over depths."""
        figure = new_figure(8.3, 6.4)
        (error, seconds), (backward, images) = figure.subplots(2, 2)
        adaptive = [row for row in rows if row["rtol"] is not None]
        fixed = [row for row in rows if row["num_steps"] is not None]
        self._lines(error, adaptive, "rtol", "relative_error", "relative error of the gradient")
        self._lines(seconds, adaptive, "rtol", "seconds", "seconds per training step", f"batch {self.batch_size}")
        self._lines(backward, adaptive, "rtol", "nfe_backward", "evaluations in the backward pass", "Backprop: none")
        self._lines(images, fixed, "num_steps", "images_per_gib", "images per step that fit into 1 GiB")
        images.set_xlabel("depth: midpoint steps over [0, 1]")
        images.set_xscale("log", base=2)
        for axis in (images.xaxis, images.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
        images.set_yticks([200, 500, 1_000, 2_000, 5_000])
        for axes in (error, seconds, backward):
            axes.set_xlabel("Dopri5's tolerance, rtol = atol")
            axes.invert_xaxis()
        backward.set_yscale("linear")
        figure.legend(*error.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        return figure

    @staticmethod
    def _lines(axes: Axes, rows: list[Row], x: str, y: str, label: str, title: str = "") -> None:
        for index, name in enumerate(GRADIENTS):
            points = [(row[x], row[y]) for row in rows if row["gradient"] == name and row[y]]
            axes.plot(*zip(*points, strict=True), label=name, **series_style(index)) if points else None
        axes.set(xscale="log", yscale="log", ylabel=label)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
