"""A study of squares, which gives up where it is told to."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure

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
