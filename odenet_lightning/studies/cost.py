"""What makes the ODE cheap? Accuracy against evaluations under an accurate solver, for each regularizer."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from odenet_lightning.block import recorded_solves
from odenet_lightning.figures import caption, new_figure, series_style
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.regularizers import ErrorEstimate, Jacobian, Kinetic, RandomEnd, Regularizer, Stiffness
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.columns import Column
from odenet_lightning.studies.intervals import FEWEST, deviation, is_decided, with_interval
from odenet_lightning.studies.study import Row, Study, grouped, number, numbers
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
    columns: ClassVar[tuple[Column, ...]] = (
        Column("kind", "trained with", is_text=True, says="a regularizer and its weight, of RandomEnd its width"),
        *(Column(f"evaluations_{tolerance:g}", f"NFE at {tolerance:g}") for tolerance in TOLERANCES),
        Column("saved", "saved, %", says=f"evaluations (NFE) at {COMPARED:g}, against the same seed without"),
        Column(
            "points",
            "points",
            says="of accuracy, against the same seed without; from three runs on with 95 % intervals",
        ),
        Column("accuracy", "accuracy", says="on test digits"),
        Column("n", "runs"),
    )

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
                "kind": name if name == NONE else f"{name} {strength:g}",
                "regularizer": name,
                "strength": strength,
                **{f"evaluations_{t:g}": statistics.mean(numbers(group, f"evaluations_{t:g}")) for t in TOLERANCES},
                "saved": with_sign(saved(rows, group)),
                "points": with_sign(gained(rows, group)),
                "accuracy": f"{100 * statistics.mean(numbers(group, f'accuracy_{COMPARED:g}')):.2f} %",
                "seconds": statistics.median(numbers(group, "seconds")),
                "n": len(group),
            }
            for (name, strength), group in groups_of(rows).items()
        ]

    def answer(self, rows: list[Row]) -> str:
        """The regularizers that save evaluations in any case, or the one that saves the most on average."""
        found = {
            f"{name} at {strength:g}": (saved(rows, group), gained(rows, group))
            for (name, strength), group in groups_of(rows).items()
            if name != NONE
        }
        told = {name: f"{name} ({with_sign(less)} %, {with_sign(more)} points)" for name, (less, more) in found.items()}
        sure = [name for name, (less, _) in found.items() if is_decided(less) and statistics.mean(less) > 0]
        if sure:
            return f"evaluations are saved by {', '.join(told[name] for name in sure)}."
        most = max(found, key=lambda name: statistics.mean(found[name][0]))
        runs = len(found[most][0])
        why = "every interval of what is saved includes zero" if runs >= FEWEST else "too few for an interval"
        return f"undecided with n = {runs}, {why}; on average the most is saved by {told[most]}."

    def draw(self, rows: list[Row]) -> Figure:
        """Accuracy against evaluations at each tolerance: means over seeds with their standard deviations."""
        figure = new_figure(9.6, 4.6)
        panels = figure.subplots(1, len(TOLERANCES), sharey=True)
        for axes, tolerance in zip(panels, TOLERANCES, strict=True):
            for index, name in enumerate((NONE, *REGULARIZERS)):
                mine = {strength: group for (other, strength), group in groups_of(rows).items() if other == name}
                if not mine:
                    continue
                evaluations = [numbers(group, f"evaluations_{tolerance:g}") for group in mine.values()]
                accuracies = [[100 * a for a in numbers(group, f"accuracy_{tolerance:g}")] for group in mine.values()]
                x, y = (list(map(statistics.mean, values)) for values in (evaluations, accuracies))
                spread = [deviation(values) or 0.0 for values in accuracies]
                label = name if name == NONE else f"{name} {min(mine):g} and {max(mine):g}"
                style = series_style(index)
                drawn = axes.errorbar(x, y, spread, elinewidth=0.6, capsize=2, label=label, linewidth=1.2, **style)
                drawn[0].set_markevery([0])
                axes.plot(x[1:], y[1:], **{**style, "markersize": 9})  # the stronger one
            axes.set_title(f"tested by Dopri5 at {tolerance:g}", fontsize=10)
            axes.set_xlabel("evaluations per solve")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("test accuracy, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
        runs = len(next(iter(groups_of(rows).values())))
        bars = ", bars: the standard deviation of the accuracy" if runs >= FEWEST else ""
        caption(
            figure,
            f"Means over seeds, n = {runs}{bars}. Each regularizer has two strengths, the larger marker the stronger: "
            "weights, of RandomEnd widths. An evaluation is one of the field f(t, y), counted in batches of "
            f"{BATCH} test digits.",
        )
        return figure


def groups_of(rows: list[Row]) -> dict[tuple[str, Any], list[Row]]:
    """Rows by regularizer and strength, in order."""
    return grouped(rows, "regularizer", "strength")


def against(rows: list[Row], group: list[Row], column: str, compare: Callable[[float, float], float]) -> list[float]:
    """A comparison at `COMPARED` of each row with the one of the same seed without a regularizer; none of these."""
    none = {row["seed"]: number(row, f"{column}_{COMPARED:g}") for row in rows if row["regularizer"] == NONE}
    if group[0]["regularizer"] == NONE:
        return []
    return [compare(number(row, f"{column}_{COMPARED:g}"), none[row["seed"]]) for row in group]


def saved(rows: list[Row], group: list[Row]) -> list[float]:
    """Per cent of the evaluations, seed by seed."""
    return against(rows, group, "evaluations", lambda own, none: 100 * (1 - own / none))


def gained(rows: list[Row], group: list[Row]) -> list[float]:
    """Points of accuracy, seed by seed."""
    return against(rows, group, "accuracy", lambda own, none: 100 * (own - none))


def with_sign(values: list[float]) -> str | None:
    """The mean difference with its interval."""
    return with_interval(values, "+.2f") if values else None
