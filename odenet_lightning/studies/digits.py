"""Which digits are hard? Evaluations that each image needs when it is solved by itself."""

import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from odenet_lightning.block import recorded_solves
from odenet_lightning.certificate import CHUNK
from odenet_lightning.figures import COLOURS, new_figure, tile
from odenet_lightning.models import CLASSES
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.networks import OneNetwork
from odenet_lightning.studies.study import Row, number

COLUMNS = ("label", "predicted", "confidence", "evaluations", "rejected")
SHOWN = 12  # hardest and easiest digits drawn, each


@dataclass
class Digits(OneNetwork):
    """Evaluations that each image needs at a tight tolerance, against confidence and correctness.

    Every image is solved by itself (`per_sample`), by Dopri5 with the heuristic first step.

    Args:
        tolerance: rtol = atol.
        images_used: validation digits.
    """

    tolerance: float = 1e-6
    images_used: int = 2_000

    quick: ClassVar[dict[str, Any]] = {"images_used": 200, "epochs": 8, "tolerance": 1e-5}
    sweeps: ClassVar[tuple[str, ...]] = ("images_used",)

    def cases(self) -> list[Row]:
        """One per image, by its place in the validation part."""
        return [{"image": place} for place in self.chosen("val", self.images_used).tolist()]

    @cached_property
    @torch.no_grad()
    def solved(self) -> dict[int, Row]:
        """What each image needs and is taken for, all solved in few batches."""
        net, places = self.network, self.chosen("val", self.images_used)
        net.block.solver = Dopri5(self.tolerance, self.tolerance, per_sample=True)
        found: dict[int, Row] = {}
        for chunk in places.split(CHUNK):
            images, labels = self.images("val", chunk)
            with recorded_solves(net) as solves:
                confidence, digit = net(images).softmax(1).max(1)
            cost = solves[0].images
            assert cost is not None
            columns = (chunk, labels, digit, confidence, cost.evaluations, cost.rejected)
            for place, *row in zip(*(column.tolist() for column in columns), strict=True):
                found[place] = dict(zip(COLUMNS, row, strict=True))
        return found

    def measure(self, case: Row) -> Row:
        """Look up one image."""
        row = self.solved[int(number(case, "image"))]
        return {**row, "correct": row["predicted"] == row["label"], "n": 1}

    def draw(self, rows: list[Row]) -> Figure:
        """Evaluations against confidence, by class, and the digits at both ends."""
        figure = new_figure(8.3, 7.2)
        (scatter, classes), (hardest, easiest) = figure.subplots(2, 2, height_ratios=[1, 0.9])
        right, wrong = ([row for row in rows if row["correct"] is state] for state in (True, False))
        for group, label, style in (
            (right, "right", {"marker": "o", "c": COLOURS[3], "s": 10, "alpha": 0.5}),
            (wrong, "wrong", {"marker": "x", "c": "black", "s": 28}),
        ):
            # on a logarithmic scale of doubt, confident digits differ visibly
            doubt = [max(1 - number(row, "confidence"), 1e-7) for row in group]
            # evaluations come in steps of six: jitter keeps points from hiding each other
            spread = 4 * (torch.rand(len(group), generator=torch.Generator().manual_seed(0)) - 0.5)
            work = torch.tensor([number(row, "evaluations") for row in group]) + spread
            scatter.scatter(work.numpy(), doubt, label=f"{label} ({len(group)})", **style)
        scatter.set(yscale="log", ylabel="doubt: 1 - confidence")
        scatter.set_xlabel("evaluations (NFE), with a jitter of up to 2")
        scatter.legend(loc="best")
        for digit in range(CLASSES):
            counts = torch.tensor([number(row, "evaluations") for row in rows if row["label"] == digit])
            if len(counts) > 1:
                classes.errorbar(digit, float(counts.mean()), float(counts.std()), fmt="o", color="black", capsize=4)
        classes.set_xticks(range(CLASSES), list(self.data().class_names))
        classes.set(xlabel="class", ylabel="evaluations (NFE), mean and sd")
        classes.grid(alpha=0.3, axis="y")
        order = sorted(rows, key=lambda row: (number(row, "evaluations"), -number(row, "confidence")))
        for axes, group, title in ((hardest, order[::-1], "most evaluations"), (easiest, order, "fewest evaluations")):
            self._pictures(axes, group[:SHOWN], title)
        return figure

    def _pictures(self, axes: Any, rows: list[Row], title: str) -> None:
        """Digits in a grid, each with its evaluations and, where wrong, the prediction."""
        chosen = torch.tensor([int(number(row, "image")) for row in rows])
        images, gap = self.data().parts["val"].images[chosen].float() / 255, 12
        axes.imshow(tile(images, 4, gap, fill=float("nan")).numpy(), cmap="gray_r")
        for place, row in enumerate(rows):
            x, y = place % 4 * (28 + gap) + 14, place // 4 * (28 + gap) - 1
            note = "" if row["correct"] else f", as {row['predicted']}"
            axes.text(x, y, f"{row['evaluations']}{note}", ha="center", va="bottom", fontsize=8)
        axes.axis("off")
        axes.set_title(title, fontsize=10, pad=14)

    def table(self, rows: list[Row]) -> list[Row]:
        """Right and wrong digits, and each class, on average."""
        groups = {"right": [r for r in rows if r["correct"]], "wrong": [r for r in rows if not r["correct"]]}
        names = self.data().class_names
        groups |= {f"class {names[digit]}": [r for r in rows if r["label"] == digit] for digit in range(CLASSES)}
        return [
            {
                "digits": name,
                "evaluations": statistics.mean(number(r, "evaluations") for r in group),
                "confidence": statistics.mean(number(r, "confidence") for r in group),
                "n": len(group),
            }
            for name, group in groups.items()
            if group
        ]
