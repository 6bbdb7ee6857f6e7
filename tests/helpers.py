"""Helpers of several test files."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from odenet_lightning.cli import main
from odenet_lightning.figures import new_figure
from odenet_lightning.studies import Study
from odenet_lightning.studies.columns import Column, Row
from odenet_lightning.studies.study import number


@dataclass
class Squares(Study):
    """Squares, noted in squared.txt as they are measured; gives up, or is killed, at one of them.

    Args:
        count: how many.
        until: the last one that is measured.
        power: another setting.
        killed: whether to end by SIGKILL.
    """

    count: int = 6
    until: int = 100
    power: int = 2
    killed: bool = False

    quick: ClassVar[dict[str, Any]] = {}
    sweeps: ClassVar[tuple[str, ...]] = ("count", "until", "killed")
    columns: ClassVar[tuple[Column, ...]] = (Column("number"), Column("square"))

    def check(self) -> None:
        pass  # these settings need no sense

    def cases(self) -> list[Row]:
        return [{"number": number} for number in range(self.count)]

    def measure(self, case: Row) -> Row:
        value = int(number(case, "number"))
        if value > self.until:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        with Path("squared.txt").open("a") as file:
            file.write(f"{value}\n")
        return {"square": value**self.power, "n": 1}

    def answer(self, rows: list[Row]) -> str:
        return f"the largest is {max(number(row, 'square') for row in rows):g}."

    def draw(self, rows: list[Row]) -> Figure:
        figure = new_figure(3, 3)
        figure.subplots().plot([number(row, "number") for row in rows], [number(row, "square") for row in rows])
        return figure


def outside(figure: Figure) -> list[str]:
    """The texts that are cut by the figure's edge."""
    figure.canvas.draw()
    edge = figure.bbox.padded(1)
    off = [axes for axes in figure.axes if not axes.axison]
    hidden = {label for axes in off for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in hidden]
    boxes = {text.get_text(): text.get_window_extent() for text in shown if isinstance(text, Text)}
    return [text for text, box in boxes.items() if not (edge.contains(*box.min) and edge.contains(*box.max))]


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a call that must fail; returns its one line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert len(errors[0]) < 400
    return errors[0]
