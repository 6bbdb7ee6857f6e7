"""Reference rows, and how tables in Markdown show their values."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from odenet_lightning.studies.columns import MISSING, Row, Value
from odenet_lightning.studies.rows import Ledger

LOGS = Path(__file__).parents[2] / "lightning_logs"


def reference(study: str, file: str = "rows.csv") -> list[Row]:
    """A reference study's rows."""
    return Ledger(LOGS / f"reference-study-{study}" / file).rows


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; all but the first column to the right."""
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, marks, *lines))


def shown(value: Value, form: str = "g", unit: str = "") -> str:
    """A value in a format, or a dash where it is not known."""
    return MISSING if value is None else f"{value:{form}}{unit}"


def percent(value: float, sd: float | None = None) -> str:
    """A share, and its standard deviation over runs."""
    return f"{100 * value:.2f} %" + (f" ± {100 * sd:.2f}" if sd is not None else "")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares."""
    return percent(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)
