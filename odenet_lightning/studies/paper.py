"""Does Figure 3 of Chen et al. 2018 hold here? Error, time and backward pass against evaluations; cost of training."""

import copy
import hashlib
import itertools
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import seed_everything
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from odenet_lightning.block import recorded_solves
from odenet_lightning.callbacks import EvaluationCounts
from odenet_lightning.checkpoints import WholeCheckpointIO
from odenet_lightning.figures import caption, new_figure
from odenet_lightning.gradients import Adjoint
from odenet_lightning.models import ODENet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import Dopri5, rms_norm
from odenet_lightning.studies.columns import Column, duration, percent
from odenet_lightning.studies.paper_panels import draw_panels
from odenet_lightning.studies.study import REFERENCE_TOLERANCE, Row, Study, accurate_y1, number, numbers
from odenet_lightning.studies.training import trainer_for

COLUMNS = (
    Column("step", says="of the optimiser"),
    Column("rtol", "rtol", says="tolerance of a solve with the last weights; without one, the row is of training"),
    Column("nfe_forward", "NFE for.", says="evaluations of the field per forward solve"),
    Column("nfe_backward", "NFE back.", says="in the adjoint's solve"),
    Column("seconds", "time", duration, says="of the steps since the row above; of a forward solve"),
    Column("seconds_backward", "time back.", duration, says="of a backward solve"),
    Column("relative_error", "error", says="relative, of y(1), against a float64 solve at 1e-8"),
    Column("val_acc", "val acc", percent, says="accuracy on ten batches of validation digits"),
)


@dataclass
class Paper(Study):
    """Figure 3 of Chen et al. 2018 (arXiv:1806.07366), on the post's network, which costs a fraction of the paper's.

    Trains with Dopri5 and the continuous adjoint, as the paper does, counting evaluations; then solves with the
    final weights at each tolerance. Evaluations are averages per solve; `seconds` are, in training, of the steps
    between two points and validation on ten batches; at a tolerance, of a forward solve.

    Args:
        channels: width of the network.
        tolerance: trained with, rtol = atol.
        tolerances: solved with in the end.
        points: times at which evaluations are counted in training.
        steps: optimiser steps between two counts, each time with batches drawn anew from all digits.
        lr: of AdamW, constant.
        batch_size: images per step and per solve.
        repeats: timed solves, of which the median counts.
    """

    channels: int = 6
    tolerance: float = 1e-3
    tolerances: list[float] = field(default_factory=lambda: [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    points: int = 12
    steps: int = 60
    lr: float = 0.005
    batch_size: int = 64
    repeats: int = 7

    quick: ClassVar[dict[str, Any]] = {
        **{"channels": 2, "points": 4, "steps": 25, "batch_size": 32, "repeats": 3},
        **{"tolerances": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]},
    }
    sweeps: ClassVar[tuple[str, ...]] = ("tolerances", "points")
    columns: ClassVar[tuple[Column, ...]] = COLUMNS

    def __post_init__(self) -> None:
        super().__post_init__()
        self.solved: Tensor | None = None

    def check(self) -> None:
        """Refuse a way from point to point that is longer than a pass over the digits."""
        super().check()
        most = len(self.data().parts["train"]) // self.batch_size
        if self.steps > most:
            raise ValueError(f"steps must be at most {most}, a pass over these digits in batches of {self.batch_size}")

    def cases(self) -> list[Row]:
        """Steps of training, then tolerances with the weights of the last one."""
        training: list[Row] = [{"step": point * self.steps, "rtol": None} for point in range(1, self.points + 1)]
        return training + [{"step": self.points * self.steps, "rtol": rtol} for rtol in self.tolerances]

    def measure(self, case: Row) -> Row:
        """Train for some steps, or solve at a tolerance."""
        point, rtol = int(number(case, "step")) // self.steps, case["rtol"]
        return self._solve(point, rtol) if isinstance(rtol, float) else self._train(point)

    def _checkpoint(self, point: int) -> str:
        """The path of the weights at a point, by this code on this machine: an interrupted study resumes from it."""
        settings = json.dumps([self.settings(), self.provenance], sort_keys=True).encode()
        return str(self.folder / "weights" / f"{hashlib.sha256(settings).hexdigest()[:12]}-{point}.ckpt")

    def _module(self) -> ClassifierModule:
        solver = Dopri5(self.tolerance, self.tolerance)
        net = ODENet(self.channels, solver, Adjoint(normalise=False))
        return ClassifierModule(net, lambda p: AdamW(p, lr=self.lr, weight_decay=1e-4), schedule="constant")

    def _trained(self, point: int) -> str:
        """The checkpoint at a point, trained again if it is missing."""
        if not Path(self._checkpoint(point)).is_file():
            self._train(point)
        return self._checkpoint(point)

    def _train(self, point: int) -> Row:
        """Train on from the previous point's checkpoint; to the trainer, the steps between two points are an epoch."""
        before = self._trained(point - 1) if point > 1 else None
        data = copy.copy(self.data())  # with an order of its own
        data.batch_size = self.batch_size
        seed_everything(self.seed, verbose=False)
        trainer = trainer_for(
            self.device,
            max_epochs=point,
            limit_train_batches=self.steps,
            limit_val_batches=10,
            callbacks=[EvaluationCounts()],
            plugins=[WholeCheckpointIO()],
        )
        begin = time.perf_counter()
        trainer.fit(self._module(), data, ckpt_path=before)
        seconds = time.perf_counter() - begin
        assert trainer.global_step == point * self.steps
        trainer.save_checkpoint(self._checkpoint(point))
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {
            "nfe_forward": values["nfe/forward"],
            "nfe_backward": values["nfe/backward"],
            "seconds": seconds,
            "seconds_backward": None,
            "relative_error": None,
            "val_acc": values["val/acc"],
            "n": self.steps,
        }

    def _solve(self, point: int, rtol: float) -> Row:
        """Solve forward and backward at a tolerance, with the weights at a point, on one training batch."""
        module = self._module()
        module.load_state_dict(torch.load(self._trained(point), weights_only=True)["state_dict"])
        net = module.net.to(self.device).eval()
        assert isinstance(net, ODENet)
        images, labels = self.images("train", self.chosen("train", self.batch_size))
        y0 = net.stem(images).detach()
        net.block.solver = Dopri5(rtol, rtol)
        forward, backward, y1 = [], [], y0
        with recorded_solves(net) as solves:
            for _ in range(1 + self.repeats):
                begin = time.perf_counter()
                y1 = net.block(y0.requires_grad_())
                forward.append(time.perf_counter() - begin)
                loss = F.cross_entropy(net.head(y1), labels)
                begin = time.perf_counter()
                loss.backward()
                backward.append(time.perf_counter() - begin)
        if self.solved is None:
            self.solved = accurate_y1(net.block.field, y0)
        return {
            "nfe_forward": solves[-1].evaluations,
            "nfe_backward": solves[-1].backward.evaluations if solves[-1].backward else 0,
            "seconds": statistics.median(forward[1:]),
            "seconds_backward": statistics.median(backward[1:]),
            "relative_error": float(rms_norm(y1.detach().double() - self.solved) / rms_norm(self.solved)),
            "val_acc": None,
            "n": self.repeats,
        }

    def answer(self, rows: list[Row]) -> str:
        """Which of the paper's observations are made here."""
        return in_words(rows)

    def draw(self, rows: list[Row]) -> Figure:
        """The four panels."""
        figure = new_figure(8.3, 7.0)
        draw_panels(figure, rows, self.batch_size, self.tolerance)
        caption(
            figure,
            "As in Figure 3 of Chen et al. 2018. (a) to (c): the last weights, solved at tolerances rtol = atol. "
            f"Error: relative, root mean square, against a float64 solve at {REFERENCE_TOLERANCE:g}. An evaluation is "
            "one of the field f(t, y). The adjoint solves a second ODE backward for the gradient.",
        )
        return figure


def in_words(rows: list[Row]) -> str:
    """Which of the paper's three observations are made here."""
    solved = sorted((row for row in rows if row["rtol"] is not None), key=lambda row: -number(row, "rtol"))
    errors, training = numbers(solved, "relative_error"), [row for row in rows if row["rtol"] is None]
    falls = all(later <= earlier for earlier, later in itertools.pairwise(errors))
    first, last = (number(training[at], "nfe_forward") for at in (0, -1))
    ratio = statistics.median(number(row, "nfe_backward") / number(row, "nfe_forward") for row in solved)
    return (
        f"the error {'falls' if falls else 'does not fall'} with every tighter tolerance, the evaluations of a "
        f"forward solve {'grow' if last > first else 'do not grow'} during training ({first:.0f} to {last:.0f}), "
        f"and the backward pass takes {ratio:.1f} times those of the forward pass (median over tolerances), which "
        "in the paper is about a half."
    )
