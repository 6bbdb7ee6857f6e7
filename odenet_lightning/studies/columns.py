"""Columns: how a study's table is printed, in lines of at most 80 characters."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

Value = str | int | float | bool | None
Row = dict[str, Value]

WIDTH = 80  # characters of a terminal
NARROWEST = 8  # characters to which a column of text may shrink
MISSING = "-"


def plain(value: Any) -> str:
    """Text as it is; a number in three digits, or whole."""
    if isinstance(value, bool | str):
        return str(value)
    whole = isinstance(value, int) or abs(value) >= 1_000
    return f"{value:,.0f}" if whole else f"{value:.3g}"


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.2f} %"


def size(count: float) -> str:
    """Bytes, in the unit that they are counted in."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while abs(count) >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.1f} {units[power]}" if power else f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """A time, in the unit that it is counted in."""
    for scale, unit in ((1e-6, "us"), (1e-3, "ms"), (1.0, "s")):
        if abs(seconds) < {"us": 1e-3, "ms": 1.0, "s": 120.0}[unit]:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


@dataclass(frozen=True)
class Column:
    """A column of a printed table.

    Args:
        key: of the rows' values.
        head: what stands above them, with their unit; by default the key.
        form: a value as text; a missing one is a dash, and a column without any value is left out.
        says: what the values are, written below the table, where the head does not say it.
        is_text: whether it stands to the left, and may be broken over several lines.
    """

    key: str
    head: str = ""
    form: Callable[[Any], str] = plain
    says: str = ""
    is_text: bool = False

    @property
    def title(self) -> str:
        """What stands above the column."""
        return self.head or self.key

    def cell(self, row: Row) -> str:
        """A row's value as text."""
        value = row[self.key]
        return MISSING if value is None else self.form(value)


def constants(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns of numbers that have one value in all of several rows."""
    several = [column for column in columns if len(rows) > 1 and not column.is_text]
    return [column for column in several if len({column.cell(row) for row in rows}) == 1]


def width_of(widths: Sequence[int]) -> int:
    """A line's, with its gaps."""
    return sum(widths) + 2 * (len(widths) - 1)


def fitted(columns: Sequence[Column], cells: Sequence[Sequence[str]], breaks_words: bool) -> list[int]:
    """The columns' widths: those of texts shrink, the widest first, until a line is not too long."""
    lines = zip(*cells, strict=True)
    widths = [
        max(*map(len, column.title.split()), *map(len, line)) for column, line in zip(columns, lines, strict=True)
    ]
    words = [[word for line in cells for word in line[index].split()] for index in range(len(columns))]
    least = [NARROWEST if breaks_words else max(NARROWEST, *map(len, ["", *found])) for found in words]
    while width_of(widths) > WIDTH:
        wide = [at for at, column in enumerate(columns) if column.is_text and widths[at] > least[at]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def as_text(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Rows as an aligned table, and below it what its columns are.

    Where it would be too wide, numbers that are the same in all rows go below it, and then long words are broken.
    """
    if not rows:
        return "no rows"
    columns = [column for column in columns if any(row[column.key] is not None for row in rows)]
    cells = [[column.cell(row) for column in columns] for row in rows]
    widths, same = fitted(columns, cells, breaks_words=False), []
    if width_of(widths) > WIDTH:
        same = constants(rows, columns)
        columns = [column for column in columns if column not in same]
        cells = [[column.cell(row) for column in columns] for row in rows]
        widths = fitted(columns, cells, breaks_words=True)

    def line(texts: Sequence[str], is_head: bool = False) -> list[str]:
        parts = [textwrap.wrap(text, width) for text, width in zip(texts, widths, strict=True)]
        if is_head:  # stands on the table
            height = max(map(len, parts))
            parts = [[""] * (height - len(part)) + part for part in parts]
        return ["  ".join(map(placed, columns, cut, widths)).rstrip() for cut in zip_longest(*parts, fillvalue="")]

    table = line([column.title for column in columns], is_head=True)
    for texts in cells:
        table += line(texts)
    notes = ["in all rows: " + ", ".join(f"{each.title} {each.cell(rows[0])}" for each in same)] if same else []
    notes += [paragraph(f"{column.title}: {column.says}", "  ") for column in columns if column.says]
    return "\n".join([*table, *([""] if notes else []), *notes])


def placed(column: Column, text: str, width: int) -> str:
    """A cell in its width."""
    return f"{text:<{width}}" if column.is_text else f"{text:>{width}}"


def paragraph(text: str, indent: str = "") -> str:
    """A sentence in lines of a terminal's width, all but the first indented."""
    kept = text.replace(" %", "\xa0%")
    return textwrap.fill(kept, WIDTH, subsequent_indent=indent, break_on_hyphens=False).replace("\xa0", " ")
