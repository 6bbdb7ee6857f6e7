"""Evaluation: results that do not depend on how images are put into batches."""

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.gradients import Checkpoint, Gradient
from odenet_lightning.solvers import Solver


class Evaluation(Callback):
    """Has `validate`, `test` and `predict` solve each image by itself where the solver would choose one step for all.

    `fit` trains and validates with the solver as set. Solvers that cannot do this (`TorchDiffEq`, `Reversible`) are
    left as they are.

    Args:
        per_sample: false leaves all solvers as set, for fields that cannot take a time for each image.
    """

    def __init__(self, per_sample: bool = True) -> None:
        self.per_sample = per_sample
        self.before: list[tuple[Solver, Gradient]] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" or not self.per_sample:
            return
        blocks = classifier(pl_module).net.ode_blocks
        self.before = [(block.solver, block.gradient) for block in blocks]
        for block in blocks:
            block.solver = block.solver.by_sample()
            if isinstance(block.gradient, Checkpoint):  # the same gradient without slots, which `IsODE` asks for
                block.gradient = Checkpoint()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for block, before in zip(classifier(pl_module).net.ode_blocks, self.before, strict=False):
            block.solver, block.gradient = before
        self.before = []
