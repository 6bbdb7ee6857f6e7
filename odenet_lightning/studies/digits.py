"""Which digits are hard? Evaluations that each image needs when it is solved by itself."""

import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from odenet_lightning.block import recorded_solves
from odenet_lightning.certificate import CHUNK
from odenet_lightning.figures import COLOURS, caption, log_axis, new_figure, tile
from odenet_lightning.models import CLASSES
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.columns import Column, percent
from odenet_lightning.studies.intervals import plus_minus
from odenet_lightning.studies.networks import OneNetwork
from odenet_lightning.studies.study import Row, number, numbers

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
    columns: ClassVar[tuple[Column, ...]] = (
        Column("digits", is_text=True),
        Column("evaluations", "NFE", lambda value: f"{value:.1f}", says="evaluations of the field per digit, mean"),
        Column("confidence", form=percent, says="the largest probability, mean"),
        Column("n", "number"),
    )

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
        figure = new_figure(8.3, 7.6)
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
            work = torch.tensor(numbers(group, "evaluations")) + spread
            scatter.scatter(work.numpy(), doubt, label=f"{label} ({len(group)})", **style)
        scatter.margins(y=0.12)  # room for the legend
        log_axis(scatter, "y")
        scatter.set_xlabel("evaluations, with a jitter of up to 2")
        scatter.set_title("doubt (1 - confidence) of each digit", fontsize=10)
        scatter.legend(loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8)
        for digit in range(CLASSES):
            counts = torch.tensor([number(row, "evaluations") for row in rows if row["label"] == digit])
            if len(counts) > 1:
                classes.errorbar(digit, float(counts.mean()), float(counts.std()), fmt="o", color="black", capsize=4)
        classes.set_xticks(range(CLASSES), list(self.data().class_names))
        classes.set_xlabel("class")
        classes.set_title("evaluations, mean and standard deviation", fontsize=10)
        classes.grid(alpha=0.3, axis="y")
        order = sorted(rows, key=lambda row: (number(row, "evaluations"), -number(row, "confidence")))
        for axes, group, title in ((hardest, order[::-1], "most"), (easiest, order, "fewest")):
            self._pictures(axes, group[:SHOWN], f"digits with the {title} evaluations")
        caption(
            figure,
            f"Each digit is solved by itself by Dopri5 at {self.tolerance:g}. An evaluation is one of f(t, y); "
            "their number stands above a digit. Confidence: the largest probability.",
        )
        return figure

    def answer(self, rows: list[Row]) -> str:
        """The classes with the most and the fewest evaluations, and misclassified digits beside the others."""
        means = {line["digits"]: (number(line, "evaluations"), int(number(line, "n"))) for line in self.table(rows)}
        classes = {name: mean for name, (mean, _) in means.items() if name not in ("right", "wrong")}
        most, fewest = (choose(classes, key=lambda name: classes[name]) for choose in (max, min))
        text = f"{most} takes the most evaluations ({classes[most]:.1f}), {fewest} the fewest ({classes[fewest]:.1f})"
        if not {"right", "wrong"} <= means.keys():
            return f"{text}; all digits are {'right' if 'right' in means else 'wrong'}."
        groups = {state: [number(r, "evaluations") for r in rows if r["correct"] is state] for state in (False, True)}
        gap = statistics.mean(groups[False]) - statistics.mean(groups[True])
        if min(map(len, groups.values())) < 3:
            return f"{text}; misclassified digits take {gap:+.1f} evaluations, too few of them for an interval."
        # the normal approximation of the 95 % interval of a difference of two means
        width = 1.96 * sum(statistics.variance(group) / len(group) for group in groups.values()) ** 0.5
        verdict = "are no harder" if gap <= width else "are harder"
        return f"{text}; misclassified digits {verdict} ({plus_minus(gap, width, '+.2f')} evaluations)."

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
                "evaluations": statistics.mean(numbers(group, "evaluations")),
                "confidence": statistics.mean(numbers(group, "confidence")),
                "n": len(group),
            }
            for name, group in groups.items()
            if group
        ]
