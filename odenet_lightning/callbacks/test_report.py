"""TestReport: the test's accuracy in a line."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.trainer import datamodule


class TestReport(Callback):
    """Prints the accuracy on the test digits and the time it took."""

    __test__ = False  # not for pytest

    def __init__(self) -> None:
        self.started, self.seconds, self.count = 0.0, 0.0, 0

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()
        self.count = 0

    @override
    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        self.count += len(batch[1])

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = datamodule(trainer)
        used = f" of {data.digits_used}" if data is not None else ""
        count = int(trainer.strategy.reduce(torch.tensor(self.count, device=pl_module.device), reduce_op="sum"))
        if trainer.is_global_zero:
            accuracy = trainer.callback_metrics.get("test/acc")  # none of a test_step of the user's own
            told = (
                f"Tested on {count:,} images{used}"
                if accuracy is None
                else f"Accuracy on {count:,} test images{used}: {float(accuracy):.2%}"
            )
            print(f"{told} (in {self.seconds:.2f} seconds)", flush=True)
