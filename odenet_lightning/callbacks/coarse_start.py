"""CoarseStart: a cheaper solver for the first epochs."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.solvers import Solver


class CoarseStart(Callback):
    """Trains the first epochs with a coarser, cheaper solver; validation always uses the network's solver.

    Early weights are far from their final values, so an accurate solve of their ODE is wasted; the last
    epochs then fit the weights to the accurate solver. The multilevel idea of Chang et al. 2018
    (arXiv:1710.10348), in the number of steps only.

    Args:
        solver: the coarse solver, for all ODE blocks.
        epochs: epochs to train with it; 5.5 ends in the middle of the sixth.
    """

    def __init__(self, solver: Solver, epochs: float) -> None:
        if not 0 <= epochs < math.inf:
            raise ValueError(f"epochs must not be negative, and finite, not {epochs!r}")
        self.solver, self.epochs = solver, epochs
        self.own: list[Solver] = []

    def _restore(self, pl_module: LightningModule) -> None:
        for block, solver in zip(classifier(pl_module).net.ode_blocks, self.own, strict=False):
            block.solver = solver
        self.own = []

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Choose by the place in the run, so that a resumed run continues with the same solver."""
        done = trainer.current_epoch + batch_idx / trainer.num_training_batches
        if done >= self.epochs:
            self._restore(pl_module)
        elif not self.own:
            blocks = classifier(pl_module).net.ode_blocks
            self.own = [block.solver for block in blocks]
            for block in blocks:
                block.solver = self.solver

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore(pl_module)
