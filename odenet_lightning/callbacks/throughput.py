"""Throughput: images trained on per second."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.trainer import is_written


class Throughput(Callback):
    """Logs `perf/images_per_second`: images trained on, over all processes.

    All of training's time counts, loading and augmenting too; validation's does not.
    """

    def __init__(self) -> None:
        self._restart()
        self.validation_began = 0.0

    def _restart(self) -> None:
        self.images, self.idle, self.started = 0, 0.0, time.perf_counter()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()  # a run resumed within an epoch has no epoch's start

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_began = time.perf_counter()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.idle += time.perf_counter() - self.validation_began

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if is_written(trainer):
            seconds = time.perf_counter() - self.started - self.idle
            pl_module.log("perf/images_per_second", self.images / seconds)
            self._restart()
