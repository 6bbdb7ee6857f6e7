"""Where does a run's time go? Whole fits, from the start of the process to its end, by phases."""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure

from odenet_lightning.figures import COLOURS, caption, new_figure
from odenet_lightning.studies.columns import Column
from odenet_lightning.studies.command import run_command
from odenet_lightning.studies.recipes import BUILT_IN, digest, fit_arguments
from odenet_lightning.studies.study import Row, Study, grouped, number, numbers

# in the order of a run; the first is before the trainer exists, the last after the fit has ended
PHASES = ("start", "loop", "training", "validation", "pictures", "is_ode", "checkpoints", "exit")
TITLES = {"training": "train", "validation": "val", "pictures": "pic- tures", "checkpoints": "check- points"}
BAR_COLOURS = (*COLOURS, "#f0e442")


def seconds(value: float) -> str:
    """Short, as there are many columns."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


@dataclass
class Phases(Study):
    """Seconds of a whole `fit`, in a process of its own, by phases.

    `start` is until the trainer exists: Python, imports, the command line, the network. `training`: batches, from data
    to the optimiser's step; `validation`: the network on the validation digits; `pictures` and `is_ode`: these
    callbacks; `loop`: what is left within the fit, among it loading the digits, logging and Lightning's own loops.

    Args:
        configs: paths of YAML files for `fit`, or "built-in" for its recipe without one.
        runs: of each.
        epochs: instead of each recipe's own number.
    """

    configs: list[str] = field(default_factory=lambda: [BUILT_IN])
    runs: int = 3
    epochs: int | None = None

    quick: ClassVar[dict[str, Any]] = {"runs": 1, "epochs": 1}
    sweeps: ClassVar[tuple[str, ...]] = ("configs", "runs")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("recipe", is_text=True),
        *(Column(phase, TITLES.get(phase, phase), seconds) for phase in PHASES),
        Column("total", "total", seconds, says="in seconds, as all are; medians of the runs"),
        Column("n", "runs"),
    )

    def cases(self) -> list[Row]:
        """The recipes in turn, as often as each is run."""
        return [
            {"recipe": Path(config).name, "digest": digest(config), "run": run}
            for run in range(self.runs)
            for config in self.configs
        ]

    def measure(self, case: Row) -> Row:
        """Run a fit with a clock for a profiler."""
        config = next(config for config in self.configs if Path(config).name == case["recipe"])
        with tempfile.TemporaryDirectory() as folder:
            args = fit_arguments(self, config, self.seed, self.epochs)
            file = Path(folder) / "phases.json"
            clock = "odenet_lightning.phase_clock.PhaseClock"
            args += ["--trainer.profiler", clock, "--trainer.profiler.path", str(file)]
            began = time.time()
            total = run_command(args, Path(folder))
            measured = json.loads(file.read_text())
        measured["start"] = measured.pop("began") - began
        measured["exit"] = began + total - measured.pop("ended")
        return {**{phase: measured[phase] for phase in PHASES}, "total": total, "n": 1}

    def table(self, rows: list[Row]) -> list[Row]:
        """A line per recipe: medians over its runs, in seconds."""
        keys = (*PHASES, "total")
        return [
            {"recipe": name, **{key: statistics.median(numbers(group, key)) for key in keys}, "n": len(group)}
            for name, group in grouped(rows, "recipe").items()
        ]

    def answer(self, rows: list[Row]) -> str:
        """The share of the time that trains, and what takes most of the rest."""
        told = []
        for line in self.table(rows):
            share = {phase: number(line, phase) / number(line, "total") for phase in PHASES}
            most = max((phase for phase in PHASES if phase != "training"), key=share.__getitem__)
            told.append(
                f"{line['recipe']}: {share['training']:.0%} trains; of the rest most is {most}, {share[most]:.0%}"
            )
        return "; ".join(told) + "."

    def draw(self, rows: list[Row]) -> Figure:
        """A bar per recipe, one phase after the other."""
        lines = self.table(rows)
        figure = new_figure(8.3, 1.9 + 0.5 * len(lines))
        axes = figure.subplots()
        ends = [0.0] * len(lines)
        for index, phase in enumerate(PHASES):
            seconds = [number(line, phase) for line in lines]
            axes.barh(range(len(lines)), seconds, left=ends, height=0.5, label=phase, color=BAR_COLOURS[index])
            ends = [end + more for end, more in zip(ends, seconds, strict=True)]
        axes.set_yticks(range(len(lines)), [f"{line['recipe']} (n = {line['n']})" for line in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel("seconds, medians")
        caption(
            figure, "start: until the trainer exists; loop: what is left within the fit, such as loading and logging."
        )
        figure.legend(loc="outside upper center", ncols=len(PHASES), fontsize=8, handlelength=1, columnspacing=1)
        return figure
