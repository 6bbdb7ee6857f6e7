"""Ledger: a study's rows in a CSV file, each kept as soon as it is measured and none measured twice."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from odenet_lightning.studies.columns import Row, Value


def to_cell(value: Value) -> str:
    """A value as text that `from_cell` reads back exactly; text is quoted only where it would read as another thing."""
    if value is None:
        return ""
    return value if isinstance(value, str) and from_cell(value) == value else json.dumps(value)


def from_cell(cell: str) -> Value:
    """The value of a cell: a number, a truth value or quoted text where it reads as one, None if empty, else text."""
    if not cell:
        return None
    try:
        value = json.loads(cell)
    except json.JSONDecodeError:
        return cell
    return value if isinstance(value, bool | int | float | str) else cell


class Ledger:
    """Rows in a file, one line each, appended.

    A row is a case (what was measured), its values, and its provenance (by what, where, with which
    settings). A last line that a kill has cut short is dropped.

    Args:
        path: the CSV file.

    Raises:
        ValueError: the file is no such ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.columns: list[str] = []
        self.cut = b""  # what a kill left of a line
        if not path.is_file():
            return
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        self.cut = text[len(whole) :]
        try:
            lines = list(csv.reader(io.StringIO(whole.decode(), newline=""), strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): move it away") from error
        self.columns = lines[0] if lines else []
        for line in lines[1:]:
            if len(line) != len(lines[0]):
                raise ValueError(f"{path} has a line with {len(line)} of {len(lines[0])} values: move it away")
            self.rows.append(dict(zip(lines[0], map(from_cell, line), strict=True)))

    def find(self, cases: Sequence[Row], config: str) -> list[Row | None]:
        """The rows of those cases that were measured with those settings, None where there is none."""
        keys = list(cases[0])
        known = {tuple(row.get(key) for key in keys): row for row in self.rows if row.get("config") == config}
        return [known.get(tuple(from_cell(to_cell(case[key])) for key in keys)) for case in cases]

    def append(self, row: Row) -> None:
        """Keep a row.

        Raises:
            ValueError: the file has other columns.
        """
        lines = [list(row), [to_cell(value) for value in row.values()]]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(lines[1:] if self.columns else lines)
        foreign = not self.columns and not text.getvalue().encode().startswith(self.cut)
        if foreign or self.columns not in ([], list(row)):
            raise ValueError(f"{self.path} has other columns than these rows: move it away, or name another folder")
        if self.cut:
            os.truncate(self.path, self.path.stat().st_size - len(self.cut))
        with self.path.open("ab") as file:  # one write: a kill leaves the line whole or cut, never mixed
            file.write(text.getvalue().encode())
        self.columns, self.cut = list(row), b""
        # as it will be read back
        self.rows.append({key: from_cell(to_cell(value)) for key, value in row.items()})
