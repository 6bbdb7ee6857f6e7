"""EpochLines: a line for each epoch."""

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier


class EpochLines(Callback):
    """A plain line per epoch, for logs and pipes, where a progress bar would be noise."""

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        train_acc = classifier(pl_module).train_acc.compute()  # on every process: it gathers
        if not trainer.is_global_zero:
            return
        values = {**trainer.callback_metrics, "train/acc": train_acc}
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
        print("  ".join(shown), flush=True)
