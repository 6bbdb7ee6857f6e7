"""Is the network an ODE, or has it learned its solver? The same weights under every solver."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from odenet_lightning.block import recorded_solves
from odenet_lightning.figures import caption, log_axis, new_figure, series_style
from odenet_lightning.models import Classifier
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Solver,
    TorchDiffEq,
    Tsit5,
    rms_norm,
)
from odenet_lightning.studies.columns import Column, duration, percent
from odenet_lightning.studies.networks import TrainedBefore
from odenet_lightning.studies.study import REFERENCE_TOLERANCE, Row, accurate_y1, grouped, number
from odenet_lightning.studies.training import trained_odenet

FIXED: dict[str, Callable[..., Solver]] = {kind.__name__: kind for kind in (Euler, Midpoint, Heun, RK4)}
ADAPTIVE: dict[str, Callable[..., Solver]] = {kind.__name__: kind for kind in (Bosh3, Dopri5, Tsit5)}
LIBRARY = "torchdiffeq dopri5"
# what they are trained with in the end, and how it is called
TRAINED_WITH = {"one Euler step": ("Euler", 1), "midpoint, two steps": ("Midpoint", 2)}
TITLES = {"one Euler step": "one Euler step", "midpoint, two steps": "one midpoint step, two in the last epoch"}
BATCH = 250
COMPARED = 32  # images whose y(1) is compared with the reference

# name -> the solver trained with, None for one midpoint step and in the last epoch two
TRAINED = {"one Euler step": Euler(num_steps=1), "midpoint, two steps": None}

COLUMNS = (
    Column("network", "trained with", is_text=True),
    Column("solver", "tested with", is_text=True),
    Column("num_steps", "steps"),
    Column("rtol", "rtol", says="tolerance, rtol = atol"),
    Column("evaluations", "NFE", says="evaluations of the field per solve"),
    Column("seconds_per_1000", "time per 1,000", duration, says="to classify 1,000 digits"),
    Column("relative_error", "error", says="relative, of y(1), root mean square, against a float64 solve at 1e-8"),
    Column("accuracy", "accuracy", percent, says="on validation digits"),
)


@dataclass
class Solvers(TrainedBefore):
    """Cost and accuracy: trained networks tested under every solver and tolerance.

    A network that is an ODE keeps its accuracy under every solver that is accurate enough; one that
    has learned its solver along with its field loses it as soon as another one is more accurate.

    Args:
        steps: numbers of equal steps of the fixed-step methods.
        tolerances: of the adaptive methods, rtol = atol.
        epochs: to train two networks for, where no checkpoint is given: one with a single Euler step, which
            makes it a residual block, one with one midpoint step and two in the last epoch.
        images_used: validation digits.
    """

    steps: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8, 16, 32])
    tolerances: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    epochs: int = 4
    images_used: int = 1_000

    quick: ClassVar[dict[str, Any]] = {
        **{"steps": [1, 2, 4, 16], "tolerances": [1e-1, 1e-3, 1e-5]},
        **{"epochs": 8, "images_used": 250},
    }
    sweeps: ClassVar[tuple[str, ...]] = ("steps", "tolerances")
    columns: ClassVar[tuple[Column, ...]] = COLUMNS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.networks: dict[str, Classifier] = {}
        self.references: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def names(self) -> list[str]:
        """The networks' names, in the order in which they are measured."""
        return ["checkpoint"] if self.ckpt_path else list(TRAINED)

    def cases(self) -> list[Row]:
        """Every network under every solver."""
        fixed = [(name, steps, None) for name in FIXED for steps in self.steps]
        adaptive = [(name, None, rtol) for name in (*ADAPTIVE, LIBRARY) for rtol in self.tolerances]
        return [
            {"network": network, "solver": solver, "num_steps": steps, "rtol": rtol}
            for network in self.names()
            for solver, steps, rtol in (*fixed, *adaptive)
        ]

    def network(self, name: str) -> Classifier:
        """The checkpoint's, or one trained here and kept in the folder."""
        if name not in self.networks:
            self.networks[name] = self.loaded() or trained_odenet(self, self.epochs, TRAINED[name])
        return self.networks[name]

    @torch.no_grad()
    def error(self, name: str, net: Classifier, images: Tensor) -> float:
        """The largest relative error of a block's y(1), its y(0) being that of the solver under test."""
        solves: list[tuple[Tensor, Tensor]] = []

        def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            solves.append((inputs[0], output))

        hooks = [block.register_forward_hook(note) for block in net.ode_blocks]
        net(images)
        for hook in hooks:
            hook.remove()
        errors = []
        for index, (block, (start, end)) in enumerate(zip(net.ode_blocks, solves, strict=True)):
            known = self.references.get((name, index))
            # the y(0) of a second block depends on how the first one was solved
            if known is None or not torch.equal(known[0], start):
                known = self.references[name, index] = start, accurate_y1(block.field, start)
            errors.append(float(rms_norm(end.double() - known[1]) / rms_norm(known[1])))
        return max(errors)

    @torch.no_grad()
    def measure(self, case: Row) -> Row:
        """Accuracy, evaluations, time and error of a solver."""
        name = str(case["network"])
        net = copy.deepcopy(self.network(name))
        solver = make_solver(case)
        for block in net.ode_blocks:
            block.solver, block.warm_step = copy.copy(solver), None
        images, labels = self.images("val", self.chosen("val", self.images_used))
        error = self.error(name, net, images[:COMPARED])  # warms up, too
        begin, right, batches = time.perf_counter(), 0, images.split(BATCH)
        with recorded_solves(net) as solves:
            for batch, truth in zip(batches, labels.split(BATCH), strict=True):
                right += int((net(batch).argmax(1) == truth).sum())
        seconds = time.perf_counter() - begin
        return {
            "evaluations": sum(solve.evaluations for solve in solves) / len(batches),
            "seconds_per_1000": seconds / len(images) * 1_000,
            "relative_error": error,
            "accuracy": right / len(images),
            "n": len(images),
        }

    def answer(self, rows: list[Row]) -> str:
        """What each network loses from the solver that it was trained with to the most accurate one."""
        told = []
        for name, mine in grouped(rows, "network").items():
            own = [row for row in mine if (row["solver"], row["num_steps"]) == TRAINED_WITH.get(name)]
            first = max(own or mine, key=lambda row: number(row, "accuracy"))  # of a checkpoint, the best of all
            last = min(mine, key=lambda row: number(row, "relative_error"))
            before, after = number(first, "accuracy"), number(last, "accuracy")
            noise = 2 * (2 * before * (1 - before) / number(first, "n")) ** 0.5  # two standard errors of a difference
            verdict = "has learned its solver" if before - after > noise else "is an ODE as far as these digits tell"
            name = f"the network trained with {TITLES[name]}" if name in TRAINED else "the checkpoint's network"
            told.append(
                f"{name} {verdict} ({percent(before)} with {named(first)}, {percent(after)} with {named(last)})"
            )
        return "; ".join(told) + "."

    def draw(self, rows: list[Row]) -> Figure:
        """Error and accuracy over evaluations, one column per network."""
        groups = grouped(rows, "network")
        figure = new_figure(8.3, 6.8)
        grid = figure.subplots(2, len(groups), squeeze=False, sharex=True, sharey="row")
        for (above, below), (name, of_network) in zip(grid.T, groups.items(), strict=True):
            for index, solver in enumerate([*FIXED, *ADAPTIVE]):
                mine = [row for row in of_network if row["solver"] == solver]
                work = [row["evaluations"] for row in mine]
                above.plot(work, [row["relative_error"] for row in mine], label=solver, **series_style(index))
                below.plot(work, [100 * number(row, "accuracy") for row in mine], **series_style(index))
            trained = f"\ntrained with {TITLES[name]}" if name in TRAINED else ""
            for axes, title in ((above, "error of y(1)"), (below, "accuracy, %")):
                axes.set_title(f"{title}{trained}", fontsize=10)
                axes.grid(alpha=0.3)
            below.set_xlabel("evaluations per solve")
            log_axis(below, "x", base=2)
            log_axis(above, "y")
        caption(
            figure,
            f"Each line is a solver with growing numbers of steps or tightening tolerances. Error: relative, root mean "
            f"square over {COMPARED} digits, against a float64 solve at {REFERENCE_TOLERANCE:g}. Accuracy: on "
            f"{rows[0]['n']:,} validation digits. An evaluation is one of the field f(t, y).",
        )
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=7)
        return figure


def named(row: Row) -> str:
    """A row's solver in words."""
    steps = row["num_steps"]
    return (
        f"{row['solver']} at {row['rtol']:g}" if steps is None else f"{steps} {row['solver']} step{'s'[: steps != 1]}"
    )


def make_solver(case: Row) -> Solver:
    """The solver of a case."""
    name, rtol, steps = str(case["solver"]), case["rtol"], case["num_steps"]
    if name == LIBRARY:
        assert isinstance(rtol, float)
        return TorchDiffEq("dopri5", rtol, rtol)
    return ADAPTIVE[name](rtol=rtol, atol=rtol) if name in ADAPTIVE else FIXED[name](num_steps=steps)
