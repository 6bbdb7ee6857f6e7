"""EpochLines: a line for each epoch."""

import sys

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier


class EpochLines(Callback):
    """A plain line per epoch, above the progress bar or, in logs and pipes, without one.

    Shows what was logged in that epoch: an epoch cut short by `max_time` may lack a number.
    """

    def __init__(self) -> None:
        self.earlier: dict[str, Tensor] = {}

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.earlier = dict(trainer.callback_metrics)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counted = classifier(pl_module).train_acc  # not by a training_step of the user's own
        train_acc = counted.compute() if counted.update_called else None  # on every process: it gathers
        if not trainer.is_global_zero:
            return
        # Lightning keeps the same tensor until the value is logged anew
        values = {
            name: value for name, value in trainer.callback_metrics.items() if value is not self.earlier.get(name)
        }
        if train_acc is not None:
            values["train/acc"] = train_acc
        shown = [f"epoch {trainer.current_epoch + 1}", f"step {trainer.global_step}"]
        for name, label, style in (
            ("train/loss", "loss", "{:.3f}"),
            ("train/acc", "train", "{:.2%}"),
            ("val/acc", "val", "{:.2%}"),
            ("nfe/forward", "NFE forward", "{:.1f}"),
            ("nfe/backward", "backward", "{:.1f}"),
            ("perf/images_per_second", "images/s", "{:.0f}"),
        ):
            if name in values:
                shown.append(f"{label} {style.format(float(values[name]))}")
        tqdm.write("  ".join(shown))  # above the progress bar, where there is one
        sys.stdout.flush()
