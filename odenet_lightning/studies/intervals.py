"""Intervals of means over few runs: none of two, for which Student's t gives a dozen times their difference."""

import statistics
from collections.abc import Sequence

from scipy import stats

FEWEST = 3


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of a mean, by Student's t; None of fewer than three values."""
    if len(values) < FEWEST:
        return None
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation; None of fewer than three values."""
    return statistics.stdev(values) if len(values) >= FEWEST else None


def plus_minus(mean: float, width: float | None, form: str = ".2f", unit: str = "") -> str:
    """A mean with its interval or standard deviation, where there is one."""
    return f"{mean:{form}}{unit}" + (f" ± {width:.2f}" if width is not None else "")


def with_interval(values: Sequence[float], form: str = ".2f", unit: str = "") -> str:
    """A mean with its 95 % interval."""
    return plus_minus(statistics.mean(values), half_width(values), form, unit)


def is_decided(values: Sequence[float]) -> bool:
    """Whether the 95 % interval of the mean excludes zero."""
    width = half_width(values)
    return width is not None and abs(statistics.mean(values)) > width
