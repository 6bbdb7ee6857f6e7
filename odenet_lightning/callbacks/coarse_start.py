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

    On the post's network it also led to weights that an accurate solver changed less than with the finer solver
    throughout (three seeds, validation digits).

    Args:
        solver: the coarse solver, for all ODE blocks.
        epochs: epochs to train with it; 5.5 ends in the middle of the sixth.
        share: instead, the share of the run's steps, in [0, 1]. If a run is resumed with another length, its coarse
            start ends at another step; a run without a set length has none.
    """

    def __init__(self, solver: Solver, epochs: float | None = None, share: float | None = None) -> None:
        if (epochs is None) == (share is None):
            raise ValueError("CoarseStart takes epochs or share, one of them")
        if epochs is not None and not 0 <= epochs < math.inf:
            raise ValueError(f"epochs must not be negative, and finite, not {epochs!r}")
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, not {share!r}")
        self.solver, self.epochs, self.share = solver, epochs, share
        self.own: list[Solver] = []
        self.steps = 0.0

    def _restore(self, pl_module: LightningModule) -> None:
        for block, solver in zip(classifier(pl_module).net.ode_blocks, self.own, strict=False):
            block.solver = solver
        self.own = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        length = trainer.estimated_stepping_batches
        self.steps = (self.share or 0.0) * length if length < math.inf else 0.0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Choose by the place in the run, so that a resumed run continues with the same solver."""
        if self.epochs is None:
            is_over = trainer.global_step >= self.steps
        else:
            is_over = trainer.current_epoch + batch_idx / float(trainer.num_training_batches) >= self.epochs
        if is_over:
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
