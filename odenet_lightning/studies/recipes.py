"""How accurate is each recipe? Configs trained from several seeds, tested, and tested under an accurate solver."""

import hashlib
import shutil
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from odenet_lightning.figures import COLOURS, caption, new_figure
from odenet_lightning.models import Classifier
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.columns import Column, duration
from odenet_lightning.studies.command import run_command
from odenet_lightning.studies.intervals import deviation, plus_minus
from odenet_lightning.studies.study import Row, Study, grouped, number, numbers
from odenet_lightning.studies.training import trainer_for

BUILT_IN = "built-in"  # the recipe of a `fit` without a config
RETEST = 1e-3  # rtol = atol of the Dopri5 that tests again


@dataclass
class Recipes(Study):
    """Test accuracy of whole runs of `fit`, each in a process of its own.

    The last checkpoint is tested, none is chosen. Runs are kept in the study's folder, in `runs/`.

    Args:
        configs: paths of YAML files for `fit`, or "built-in" for its recipe without one.
        seeds: runs per recipe, counted from `seed`.
        epochs: instead of each recipe's own number.
    """

    configs: list[str] = field(default_factory=lambda: ["configs/fast.yaml"])
    seeds: int = 3
    epochs: int | None = None

    quick: ClassVar[dict[str, Any]] = {"configs": [BUILT_IN], "seeds": 1, "epochs": 1}
    sweeps: ClassVar[tuple[str, ...]] = ("configs", "seeds", "seed")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("recipe", is_text=True),
        Column("epochs"),
        Column("parameters"),
        Column("accuracy", "test accuracy", says="mean and, from three runs on, standard deviation"),
        Column("retest", f"Dopri5 at {RETEST:g}", says="the same weights under this solver"),
        Column("seconds", "time", duration, says="of the whole command, median"),
        Column("runs", says="one per seed"),
    )

    def check(self) -> None:
        """Refuse configs that are not there, or that rows could not tell apart."""
        super().check()
        names = [Path(config).name for config in self.configs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two configs are named {name}: rename one, as rows go by the name")
        for config in self.configs:
            if config != BUILT_IN and not Path(config).is_file():
                raise ValueError(f"there is no config {config}")

    def cases(self) -> list[Row]:
        """Every recipe, as its file is now, with every seed, seed by seed."""
        return [
            {"recipe": Path(config).name, "digest": digest(config), "seed": self.seed + seed}
            for seed in range(self.seeds)
            for config in self.configs
        ]

    def measure(self, case: Row) -> Row:
        """Train in a process of its own; test here."""
        config = next(config for config in self.configs if Path(config).name == case["recipe"])
        seed = int(number(case, "seed"))
        folder = self.folder / "runs" / "-".join(filter(None, (Path(config).stem, digest(config), str(seed))))
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        args = fit_arguments(self, config, seed, self.epochs)
        seconds = run_command(args, folder)
        path = str(folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt")
        net = ClassifierModule.load_from_checkpoint(path).net.eval()
        accuracy = self._accuracy(net)
        for block in net.ode_blocks:
            block.solver, block.warm_step = Dopri5(RETEST, RETEST), None
        return {
            "epochs": int(torch.load(path, weights_only=True)["epoch"]) + 1,
            "parameters": net.num_params,
            "accuracy": accuracy,
            "retest": self._accuracy(net) if net.ode_blocks else None,
            "seconds": seconds,
            "n": len(self.data().parts["test"]),
        }

    def _accuracy(self, net: Classifier) -> float:
        (metrics,) = trainer_for(self.device).test(ClassifierModule(net), self.data(), verbose=False)
        return metrics["test/acc"]

    def table(self, rows: list[Row]) -> list[Row]:
        """A line per recipe: means over its seeds."""
        return [
            {
                "recipe": name,
                "epochs": group[0]["epochs"],
                "parameters": group[0]["parameters"],
                "accuracy": mean_and_sd(group, "accuracy"),
                "retest": mean_and_sd(group, "retest"),
                "seconds": statistics.median(numbers(group, "seconds")),
                "runs": len(group),
            }
            for name, group in grouped(rows, "recipe").items()
        ]

    def answer(self, rows: list[Row]) -> str:
        """The most accurate recipe."""
        table = self.table(rows)
        groups = grouped(rows, "recipe")
        best = max(table, key=lambda line: statistics.mean(numbers(groups[line["recipe"]], "accuracy")))
        retest = f", {best['retest']} under Dopri5 at {RETEST:g}" if best["retest"] else ""
        runs = f"{best['runs']} run{'s'[: best['runs'] != 1]} of {duration(number(best, 'seconds'))}"
        best_of = f"the most accurate of {len(table)} recipes is {best['recipe']}" if len(table) > 1 else best["recipe"]
        return f"{best_of}: test accuracy {best['accuracy']}{retest} ({runs})."

    def draw(self, rows: list[Row]) -> Figure:
        """Each run's accuracy, tested (filled) and tested again (open), a line per recipe."""
        groups = grouped(rows, "recipe")
        figure = new_figure(8.3, 1.8 + 0.5 * len(groups))
        axes = figure.subplots()
        for place, group in enumerate(groups.values()):
            for key, shift, fill in (("accuracy", -0.12, COLOURS[2]), ("retest", 0.12, "white")):
                values = [100 * number(row, key) for row in group if row[key] is not None]
                axes.plot(values, [place + shift] * len(values), "o", color=COLOURS[2], markerfacecolor=fill)
        axes.set_yticks(range(len(groups)), [f"{name} (n = {len(group)})" for name, group in groups.items()])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_title("test accuracy, %", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
        caption(figure, f"One dot per run, n runs: as trained (filled), and under Dopri5 at {RETEST:g} (open).")
        axes.grid(alpha=0.3, axis="x")
        return figure


def fit_arguments(study: Study, config: str, seed: int, epochs: int | None) -> list[str]:
    """A `fit` of a recipe on the study's digits and device."""
    args = ["fit", *(["--config", str(Path(config).resolve())] if config != BUILT_IN else [])]
    args += ["--seed_everything", str(seed), "--data.root", str(Path(study.root).resolve())]
    args += ["--data.source", str(study.data().digits_used), "--trainer.devices", "1"]
    args += ["--trainer.accelerator", "gpu" if study.device.startswith("cuda") else "cpu"]
    return args + (["--trainer.max_epochs", str(epochs)] if epochs else [])


def digest(config: str) -> str | None:
    """A hash that changes with the config; None for the built-in recipe."""
    return None if config == BUILT_IN else hashlib.sha256(Path(config).read_bytes()).hexdigest()[:12]


def mean_and_sd(rows: list[Row], key: str) -> str | None:
    """Percent, with the standard deviation over runs where there are three or more."""
    values = [100 * number(row, key) for row in rows if row[key] is not None]
    if not values:
        return None
    return plus_minus(statistics.mean(values), deviation(values), unit=" %")
