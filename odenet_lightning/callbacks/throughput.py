"""Throughput: images trained on per second."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.trainer import is_shown, is_written


class Throughput(Callback):
    """Logs `perf/images_per_second`: images trained on since it was last written, over all processes.

    All of an epoch's time counts, loading and augmenting too; validation's does not, nor that between epochs.
    """

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0
        self.since = time.perf_counter()

    def _take_time(self) -> None:
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a run resumed within an epoch has no epoch's start
        self.images, self.seconds, self.since = 0, 0.0, time.perf_counter()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.perf_counter()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_time()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size
        self._take_time()
        if is_shown(trainer):
            pl_module.log("perf/images_per_second", self.images / self.seconds)
        if is_written(trainer):
            self.images, self.seconds = 0, 0.0
