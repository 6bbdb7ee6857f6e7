"""Is the ODE needed? The network without its middle, with residual blocks, and with an ODE, at one budget."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from matplotlib.figure import Figure
from scipy import stats

from odenet_lightning.callbacks import EvaluationCounts
from odenet_lightning.figures import COLOURS, new_figure
from odenet_lightning.models import AugmentedODENet, Classifier, ODENet, ResNet
from odenet_lightning.solvers import Midpoint
from odenet_lightning.studies.study import Row, Study, number
from odenet_lightning.studies.training import train, trainer_for

NETWORKS: dict[str, Callable[[], Classifier]] = {
    "none": lambda: ResNet(blocks=0),
    "ResNet-1": lambda: ResNet(blocks=1),
    "ResNet-6": lambda: ResNet(blocks=6),
    "ODENet": lambda: ODENet(solver=Midpoint(num_steps=3)),
    "augmented": lambda: AugmentedODENet(augment_dim=5, hidden=8, solver=Midpoint(num_steps=3)),
}


@dataclass
class Depth(Study):
    """Test accuracy of the post's network and its twins after the same epochs, batches and learning rates.

    "none" is stem and head alone; ResNet-1 and ResNet-6 have residual blocks with weights of their own;
    ODENet and augmented take three midpoint steps. The last weights are tested once, none are chosen.

    Args:
        seeds: runs per network, counted from `seed`.
        epochs: passes over the digits.
        batch_size: images per step.
        lr: the one-cycle's peak, of AdamW.
    """

    seeds: int = 3
    epochs: int = 3
    batch_size: int = 128
    lr: float = 0.01

    quick: ClassVar[dict[str, Any]] = {"seeds": 2, "epochs": 1, "batch_size": 64}
    sweeps: ClassVar[tuple[str, ...]] = ("seeds", "seed")
    networks: ClassVar[dict[str, Callable[[], Classifier]]] = NETWORKS

    def cases(self) -> list[Row]:
        """Every network with every seed, seed by seed."""
        return [{"network": name, "seed": self.seed + seed} for seed in range(self.seeds) for name in self.networks]

    def measure(self, case: Row) -> Row:
        """Train and test."""
        data = self.data()
        data.batch_size = self.batch_size
        begin = time.perf_counter()
        make = self.networks[str(case["network"])]
        module = train(make, data, self.epochs, int(number(case, "seed")), self.device, self.lr, [EvaluationCounts()])
        seconds = time.perf_counter() - begin
        evaluations = float(module.trainer.callback_metrics.get("nfe/forward", 0))
        (metrics,) = trainer_for(self.device).test(module, data, verbose=False)
        return {
            "accuracy": metrics["test/acc"],
            "parameters": module.num_params,
            "seconds": seconds,
            "evaluations": evaluations,
            "n": len(data.parts["test"]),
        }

    def table(self, rows: list[Row]) -> list[Row]:
        """Mean and 95 % confidence interval (Student's t) of each network."""
        table: list[Row] = []
        for name in self.networks:
            mine = [row for row in rows if row["network"] == name]
            values = [100 * number(row, "accuracy") for row in mine]
            if not values:
                continue
            table.append(
                {
                    "network": name,
                    "accuracy": f"{statistics.mean(values):.2f} %",
                    "interval": f"± {half_width(values):.2f}" if len(values) > 2 else None,
                    "parameters": mine[0]["parameters"],
                    "seconds": statistics.median(number(row, "seconds") for row in mine),
                    "evaluations": mine[0]["evaluations"],
                    "n": len(values),
                }
            )
        return table

    def draw(self, rows: list[Row]) -> Figure:
        """Each seed as a dot, the mean with its interval, and the training time."""
        figure = new_figure(8.3, 3.6)
        accuracy, seconds = figure.subplots(1, 2, width_ratios=[2.2, 1], sharey=True)
        table = self.table(rows)
        for place, line in enumerate(table):
            values = [100 * number(row, "accuracy") for row in rows if row["network"] == line["network"]]
            accuracy.plot(values, [place - 0.18] * len(values), "o", color=COLOURS[6], markersize=4)
            # for two runs, Student's t gives an interval a dozen times as wide as their difference
            width = half_width(values) if len(values) > 2 else 0.0
            accuracy.errorbar(statistics.mean(values), place, xerr=width, fmt="s", color=COLOURS[0], capsize=4)
            seconds.barh(place, number(line, "seconds"), height=0.5, color=COLOURS[3], edgecolor="black")
        labels = [f"{line['network']}\n{line['parameters']:,} parameters" for line in table]
        accuracy.set_yticks(range(len(table)), labels)
        interval = " and 95 % interval" if number(table[0], "n") > 2 else ""
        accuracy.set_xlabel(f"test accuracy, %: seeds, mean{interval} (n = {table[0]['n']})")
        seconds.set_xlabel("training, seconds")
        accuracy.invert_yaxis()
        for axes in (accuracy, seconds):
            axes.grid(alpha=0.3, axis="x")
        return figure


def half_width(values: list[float]) -> float:
    """Half the 95 % confidence interval of a mean, by Student's t."""
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5
