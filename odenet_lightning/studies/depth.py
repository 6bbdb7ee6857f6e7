"""Is the ODE needed? The network without its middle, with residual blocks, and with an ODE, at one budget."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from matplotlib.figure import Figure

from odenet_lightning.callbacks import EvaluationCounts
from odenet_lightning.figures import COLOURS, caption, new_figure
from odenet_lightning.models import AugmentedODENet, Classifier, ODENet, ResNet
from odenet_lightning.solvers import Midpoint
from odenet_lightning.studies.columns import Column, duration
from odenet_lightning.studies.intervals import FEWEST, half_width, is_decided, with_interval
from odenet_lightning.studies.study import Row, Study, grouped, number, numbers
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
    explained: ClassVar[str] = (
        "'none' is stem and head alone; ResNet-1 and ResNet-6 have residual blocks with their own weights, ODENet and "
        "augmented an ODE in three midpoint steps, the latter with more channels and a wider field."
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column("network", is_text=True, says='"none" is stem and head alone'),
        Column("accuracy", "test accuracy", says="mean over the runs, from three on with its 95 % interval"),
        Column("parameters", "parameters"),
        Column("seconds", "training", duration, says="median time of the runs"),
        Column("evaluations", "NFE", says="evaluations of the field per solve in training"),
        Column("n", "runs", says="one per seed"),
    )

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
        return [
            {
                "network": name,
                "accuracy": with_interval([100 * accuracy for accuracy in numbers(mine, "accuracy")], unit=" %"),
                "parameters": mine[0]["parameters"],
                "seconds": statistics.median(numbers(mine, "seconds")),
                "evaluations": mine[0]["evaluations"],
                "n": len(mine),
            }
            for name, mine in grouped(rows, "network").items()
        ]

    def answer(self, rows: list[Row]) -> str:
        """The ODE against the residual block with as many parameters, seed by seed."""
        accuracy = {(row["network"], row["seed"]): 100 * number(row, "accuracy") for row in rows}
        seeds = [seed for name, seed in accuracy if name == "ODENet" and ("ResNet-1", seed) in accuracy]
        gains = [accuracy["ODENet", seed] - accuracy["ResNet-1", seed] for seed in seeds]
        if not gains:
            return "no seed has both networks, ODENet and ResNet-1."
        verdict = "yes" if statistics.mean(gains) > 0 else "no, it is worse"
        if not is_decided(gains):
            verdict = "no, they are indistinguishable" if len(gains) >= FEWEST else "undecided"
        return (
            f"{verdict}: the ODE gains {with_interval(gains, '+.2f')} points over the residual block with as many "
            f"parameters (n = {len(gains)})."
        )

    def draw(self, rows: list[Row]) -> Figure:
        """Each seed as a dot, the mean with its interval, and the training time."""
        table = self.table(rows)
        figure = new_figure(8.3, 1.5 + 0.54 * len(table))
        accuracy, seconds = figure.subplots(1, 2, width_ratios=[2.2, 1], sharey=True)
        for place, (line, mine) in enumerate(zip(table, grouped(rows, "network").values(), strict=True)):
            values = [100 * accuracy for accuracy in numbers(mine, "accuracy")]
            accuracy.plot(values, [place - 0.18] * len(values), "o", color=COLOURS[6], markersize=4)
            width = half_width(values)
            accuracy.errorbar(statistics.mean(values), place, xerr=width, fmt="s", color=COLOURS[0], capsize=4)
            seconds.barh(place, number(line, "seconds"), height=0.5, color=COLOURS[3], edgecolor="black")
        labels = [f"{line['network']}\n{line['parameters']:,} parameters" for line in table]
        accuracy.set_yticks(range(len(table)), labels)
        accuracy.set_title("test accuracy, %", fontsize=10)
        seconds.set_title("training, seconds", fontsize=10)
        interval = " with its 95 % interval (Student's t)" if number(table[0], "n") >= FEWEST else ""
        caption(
            figure,
            f"Dots: runs, n = {table[0]['n']} per network; squares: their mean{interval}; bars: median time. "
            + self.explained,
        )
        accuracy.invert_yaxis()
        for axes in (accuracy, seconds):
            axes.grid(alpha=0.3, axis="x")
        return figure
