"""Who makes the ODE cheap? Accuracy against evaluations under an accurate solver, for each regularizer."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from odenet_lightning.block import recorded_solves
from odenet_lightning.figures import new_figure, series_style
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.regularizers import ErrorEstimate, Jacobian, Kinetic, RandomEnd, Regularizer, Stiffness
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.depth import half_width
from odenet_lightning.studies.study import Row, Study, number, numbers
from odenet_lightning.studies.training import train

NONE = "none"
# each with its strengths: weights, of RandomEnd widths
REGULARIZERS: dict[str, tuple[Callable[[float], Regularizer], tuple[float, ...]]] = {
    "Kinetic": (Kinetic, (0.1, 1.0)),
    "Jacobian": (Jacobian, (0.1, 1.0)),
    "ErrorEstimate": (ErrorEstimate, (1.0, 10.0)),
    "Stiffness": (Stiffness, (0.01, 0.1)),
    "RandomEnd": (RandomEnd, (0.25, 0.75)),
}
TRAINING = Dopri5(rtol=1e-2, atol=1e-2, first_step="warm")
TOLERANCES = (1e-3, 1e-4, 1e-5)  # rtol = atol of the Dopri5 that tests
COMPARED = 1e-4  # at which the table says what is saved
BATCH = 100  # digits tested together, which share their steps


@dataclass
class Cost(Study):
    """Test accuracy and evaluations of the post's network under Dopri5 (heuristic first step), trained alike.

    Trained for one pass of `steps` batches with Dopri5 at 1e-2, AdamW and one cycle, without a regularizer and with
    each at several strengths (weights; widths of RandomEnd). The last weights are tested once, none are chosen.
    Evaluations are the mean over batches of 100 test digits.

    Args:
        seeds: runs per strength, counted from `seed`.
        steps: training batches.
        batch_size: images per batch.
        lr: the one-cycle's peak, of AdamW.
        images_used: test digits.
    """

    seeds: int = 3
    steps: int = 300
    batch_size: int = 32
    lr: float = 0.02
    images_used: int = 2_000

    quick: ClassVar[dict[str, Any]] = {"seeds": 1, "steps": 30, "batch_size": 32, "images_used": 200}
    sweeps: ClassVar[tuple[str, ...]] = ("seeds", "seed")

    def cases(self) -> list[Row]:
        """No regularizer, and every one with every strength, for every seed, seed by seed."""
        kinds = [(NONE, None), *((name, s) for name, (_, strengths) in REGULARIZERS.items() for s in strengths)]
        return [
            {"regularizer": name, "strength": strength, "seed": self.seed + seed}
            for seed in range(self.seeds)
            for name, strength in kinds
        ]

    def measure(self, case: Row) -> Row:
        """Train, and test at each tolerance."""
        name, data = str(case["regularizer"]), self.data()
        data.batch_size = self.batch_size
        regularizer = None if name == NONE else REGULARIZERS[name][0](number(case, "strength"))
        begin, seed = time.perf_counter(), int(number(case, "seed"))
        module = train(
            lambda: ODENet(solver=TRAINING), data, 1, seed, self.device, self.lr, (), regularizer, self.steps
        )
        row: Row = {"seconds": time.perf_counter() - begin}
        for tolerance in TOLERANCES:
            accuracy, evaluations = self._test(module.net.eval(), tolerance)
            row |= {f"accuracy_{tolerance:g}": accuracy, f"evaluations_{tolerance:g}": evaluations}
        return {**row, "n": min(self.images_used, len(data.parts["test"]))}

    @torch.no_grad()
    def _test(self, net: Classifier, tolerance: float) -> tuple[float, float]:
        """Accuracy, and evaluations per solve."""
        for block in net.ode_blocks:
            block.solver = Dopri5(tolerance, tolerance)
        right = total = 0
        with recorded_solves(net) as solves:
            for places in self.chosen("test", self.images_used).split(BATCH):
                images, labels = self.images("test", places)
                right, total = right + int((net(images).argmax(1) == labels).sum()), total + len(labels)
        return right / total, statistics.mean(solve.evaluations for solve in solves)

    def table(self, rows: list[Row]) -> list[Row]:
        """Each strength's means over seeds, and what it saves and loses against none, seed by seed."""
        return [
            {
                "regularizer": name,
                "strength": strength,
                **{f"evaluations_{t:g}": statistics.mean(numbers(group, f"evaluations_{t:g}")) for t in TOLERANCES},
                "saved": with_interval(against(rows, group, "evaluations", lambda own, none: 100 * (1 - own / none))),
                "points": with_interval(against(rows, group, "accuracy", lambda own, none: 100 * (own - none))),
                "accuracy": f"{100 * statistics.mean(numbers(group, f'accuracy_{COMPARED:g}')):.2f} %",
                "seconds": statistics.median(numbers(group, "seconds")),
                "n": len(group),
            }
            for (name, strength), group in groups_of(rows).items()
        ]

    def draw(self, rows: list[Row]) -> Figure:
        """Accuracy against evaluations at each tolerance: means over seeds with their standard deviations."""
        figure = new_figure(9.6, 3.8)
        panels = figure.subplots(1, len(TOLERANCES), sharey=True)
        for axes, tolerance in zip(panels, TOLERANCES, strict=True):
            for index, name in enumerate((NONE, *REGULARIZERS)):
                mine = {strength: group for (other, strength), group in groups_of(rows).items() if other == name}
                evaluations = [numbers(group, f"evaluations_{tolerance:g}") for group in mine.values()]
                accuracies = [[100 * a for a in numbers(group, f"accuracy_{tolerance:g}")] for group in mine.values()]
                x, y = (list(map(statistics.mean, values)) for values in (evaluations, accuracies))
                errors = {"xerr": list(map(spread, evaluations)), "yerr": list(map(spread, accuracies))}
                axes.errorbar(x, y, **errors, label=name, elinewidth=0.8, **series_style(index))
                for strength, place in zip(mine, zip(x, y, strict=True), strict=True):
                    axes.annotate(strength or "", place, (4, 3), textcoords="offset points", fontsize=7)
            axes.set(title=f"Dopri5 at {tolerance:g}", xlabel="evaluations (NFE)")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("test accuracy, %: mean and sd over seeds")
        panels[-1].legend(fontsize=8)
        return figure


def groups_of(rows: list[Row]) -> dict[tuple[str, Any], list[Row]]:
    """Rows by regularizer and strength, in order."""
    keys = dict.fromkeys((str(row["regularizer"]), row["strength"]) for row in rows)
    return {key: [row for row in rows if (row["regularizer"], row["strength"]) == key] for key in keys}


def against(
    rows: list[Row], group: list[Row], column: str, compare: Callable[[float, float], float]
) -> list[float] | None:
    """A comparison at `COMPARED` of each row with the one of the same seed without a regularizer; None of these."""
    none = {row["seed"]: number(row, f"{column}_{COMPARED:g}") for row in rows if row["regularizer"] == NONE}
    if group[0]["regularizer"] == NONE:
        return None
    return [compare(number(row, f"{column}_{COMPARED:g}"), none[row["seed"]]) for row in group]


def spread(values: list[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def with_interval(values: list[float] | None) -> str | None:
    """The mean, with its 95 % interval (Student's t) where there are three or more."""
    if values is None:
        return None
    return f"{statistics.mean(values):+.2f}" + (f" ± {half_width(values):.2f}" if len(values) > 2 else "")
