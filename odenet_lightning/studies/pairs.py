"""Pairs: two ways to do the same work, timed in turn: A B A B ... Machines drift; ratios of neighbours do not."""

import statistics
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from odenet_lightning.figures import COLOURS, new_figure
from odenet_lightning.studies.study import Row, Study, number

Way = Callable[[], float]  # does the work once and returns its milliseconds
FEW = 7  # from so many pairs on, quartiles are given instead of extremes


def summary(pairs: Sequence[tuple[float, float]]) -> Row:
    """Medians of both ways, and the median of their ratios a / b with its quartiles (of few pairs, the extremes)."""
    ratios = [a / b for a, b in pairs]
    quartiles = statistics.quantiles(ratios, n=4)[::2] if len(pairs) >= FEW else (min(ratios), max(ratios))
    return {
        "a_ms": statistics.median(a for a, _ in pairs),
        "b_ms": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "low": quartiles[0],
        "high": quartiles[1],
        "n": len(pairs),
    }


@dataclass
class PairStudy(Study):
    """A study whose cases are pairs of ways, named `a` and `b` in each case, with `batch` images per step.

    Args:
        repeats: timed pairs per row.
    """

    repeats: int = 7
    # untimed pairs before the first timed one: allocators, caches, warm steps, compilers
    warm_up: ClassVar[int] = 0
    # what one measurement is, as the figure's axis says
    work: ClassVar[str] = ""
    shown: ClassVar[tuple[str, ...]] = ("a", "b", "batch", "a_ms", "b_ms", "ratio", "low", "high", "n")

    @abstractmethod
    def ways(self, case: Row) -> tuple[Way, Way]:
        """Make both ways of a case."""

    def measure(self, case: Row) -> Row:
        """Time both in turn."""
        a, b = self.ways(case)
        for _ in range(self.warm_up):
            a()
            b()
        return summary([(a(), b()) for _ in range(self.repeats)])

    def draw(self, rows: list[Row]) -> Figure:
        """Each pair's ratio with its spread, on a logarithmic scale around 1."""
        figure = new_figure(8.3, 1.3 + 0.5 * len(rows))
        axes = figure.subplots()
        for place, row in enumerate(rows):
            ratio, low, high = (number(row, key) for key in ("ratio", "low", "high"))
            axes.errorbar(ratio, place, xerr=[[ratio - low], [high - ratio]], fmt="s", color=COLOURS[2], capsize=4)
            axes.annotate(
                f"{ratio:.2f}", (ratio, place), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
            )
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [self.label(row) for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.8)
        axes.set_xscale("log", base=2)
        ends = [number(row, key) for row in rows for key in ("low", "high")]
        low, high = min(0.5, *ends) * 0.8, max(2, *ends) * 1.25
        axes.set_xlim(low, high)
        ticks = [2.0**power for power in range(-6, 7) if low <= 2.0**power <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        spread = "quartiles" if number(rows[0], "n") >= FEW else "extremes"
        figure.supxlabel(
            f"time of A / time of B for {self.work}: median and {spread}, n = {rows[0]['n']} pairs", fontsize=9
        )
        axes.grid(alpha=0.3, axis="x")
        return figure

    @staticmethod
    def label(row: Row) -> str:
        """Both ways' names, and what they have in common."""
        common = f"batch {row['batch']}" + (f", tolerance {row['rtol']:g}" if row.get("rtol") else "")
        return f"A: {row['a']}\nB: {row['b']} ({common})"
