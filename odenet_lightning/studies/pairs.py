"""Pairs: two ways to do the same work, timed in turn: A B A B ... Machines drift; ratios of neighbours do not."""

import statistics
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from odenet_lightning.figures import COLOURS, caption, log_axis, new_figure
from odenet_lightning.studies.columns import Column, duration
from odenet_lightning.studies.study import Row, Study, grouped, number, numbers

Way = Callable[[], float]  # does the work once and returns its milliseconds
ANSWERED = 2  # pairs of ways in a study's answer, the first ones
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


def in_ms(value: float) -> str:
    """A time in milliseconds in the unit that it is counted in."""
    return duration(value / 1e3)


def two_digits(value: float) -> str:
    """A ratio."""
    return f"{value:.2g}"


def spread_of(row: Row) -> str:
    """Of the ratios."""
    return f"{two_digits(number(row, 'low'))} to {two_digits(number(row, 'high'))}"


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
    columns: ClassVar[tuple[Column, ...]] = (
        Column("ways", "A / B", is_text=True),
        Column("batch", says="images per step"),
        Column("a_ms", "time of A", in_ms, says="median"),
        Column("b_ms", "time of B", in_ms),
        Column("ratio", "ratio", two_digits, says="of the times of A and B, median over the pairs"),
        Column("spread", says=f"of the ratios: their quartiles, of fewer than {FEW} pairs the extremes"),
        Column("n", "pairs"),
    )

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

    def table(self, rows: list[Row]) -> list[Row]:
        """The rows, with both ways in one column, and the spread of the ratios; none of a single pair."""
        return [
            {**row, "ways": f"{row['a']} / {row['b']}", "spread": spread_of(row) if number(row, "n") > 1 else None}
            for row in rows
        ]

    def answer(self, rows: list[Row]) -> str:
        """How the first ways compare, over all batches and tolerances."""
        told = []
        for (a, b), mine in list(grouped(rows, "a", "b").items())[:ANSWERED]:
            ratios = sorted({f"{ratio:.2g}" for ratio in numbers(mine, "ratio")}, key=float)
            told.append(f"{' to '.join(dict.fromkeys((ratios[0], ratios[-1])))} times as long with {a} as with {b}")
        return f"{self.work} takes {', and '.join(told)}."

    def draw(self, rows: list[Row]) -> Figure:
        """Each pair's ratio with its spread, on a logarithmic scale around 1."""
        figure = new_figure(8.3, 1.7 + 0.5 * len(rows))
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
        ends = [number(row, key) for row in rows for key in ("low", "high")]
        axes.set_xlim(min(0.5, *ends) * 0.8, max(2, *ends) * 1.25)
        log_axis(axes, "x", base=2)
        pairs = int(number(rows[0], "n"))
        spread = "" if pairs == 1 else " and quartiles" if pairs >= FEW else " and extremes"
        axes.set_title("time of A / time of B", fontsize=10)
        axes.grid(alpha=0.3, axis="x")
        caption(figure, f"For {self.work}, timed in turn: median{spread} of n = {pairs} ratio{'s'[: pairs != 1]}.")
        return figure

    @staticmethod
    def label(row: Row) -> str:
        """Both ways' names, and what they have in common."""
        common = f"batch {row['batch']}" + (f", tolerance {row['rtol']:g}" if row.get("rtol") else "")
        return f"A: {row['a']}\nB: {row['b']} ({common})"
