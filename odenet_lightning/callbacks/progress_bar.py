"""ProgressBar: the running epoch on a terminal of 80 columns."""

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from typing_extensions import override

SECONDS = 0.1  # between two updates: writing to the terminal after every step would slow short steps down

# name in the bar, name and format of what is logged
SHOWN = (("loss", "train/loss", "{:.3f}"), ("val", "val/acc", "{:.1%}"), ("NFE", "nfe/forward", "{:.3g}"))


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with 20 characters, time left, loss, validation accuracy and NFE in 80 columns.

    It disappears at the end of its epoch, when `EpochLines` prints a line above it. Epochs count from 1.
    """

    BAR_FORMAT = "{desc}|{bar:20}| {n_fmt}/{total_fmt} {remaining}{postfix}"

    def __init__(self) -> None:
        super().__init__()
        self.updated = 0.0

    @override
    def init_train_tqdm(self) -> Tqdm:
        return passing(super().init_train_tqdm())

    @override
    def init_validation_tqdm(self) -> Tqdm:
        return passing(super().init_validation_tqdm())

    @override
    def init_test_tqdm(self) -> Tqdm:
        return passing(super().init_test_tqdm())

    @override
    def init_predict_tqdm(self) -> Tqdm:
        return passing(super().init_predict_tqdm())

    @override
    def _should_update(self, current: int, total: int) -> bool:
        now = time.monotonic()
        is_due = self.is_enabled and (current == total or now - self.updated > SECONDS)
        self.updated = now if is_due else self.updated
        return is_due

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        logged = trainer.callback_metrics
        return {label: style.format(float(logged[name])) for label, name, style in SHOWN if name in logged}

    @override
    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        self.train_progress_bar.set_description_str(f"epoch {trainer.current_epoch + 1}{last} ")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal to the message that follows."""
        bars = (self._val_progress_bar, self._train_progress_bar, self._test_progress_bar, self._predict_progress_bar)
        for bar in bars:
            if bar is not None:
                bar.close()


def passing(bar: Tqdm) -> Tqdm:
    """The bar, set to disappear when it is complete."""
    bar.leave = False
    return bar
