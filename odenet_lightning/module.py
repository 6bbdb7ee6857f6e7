"""ClassifierModule: loss, metrics and optimiser around a network; no numerics of its own."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torchmetrics.classification import MulticlassAccuracy

from odenet_lightning.models import CLASSES, Classifier, ODENet

Schedule = Literal["constant", "one_cycle", "cosine"]
Batch = tuple[Tensor, Tensor]


class ClassifierModule(LightningModule):
    """Trains a network on the cross-entropy of its logits.

    Args:
        net: images `[B, 1, 28, 28]` -> logits `[B, 10]`; by default the post's `ODENet`.
        optimizer: makes the optimiser from the parameters.
        schedule: "one_cycle" (Smith and Topin 2019; its peak is the optimiser's lr), "cosine" to
            zero (Loshchilov and Hutter 2017), both over the run's length in steps, or "constant".
    """

    def __init__(
        self,
        net: Classifier | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda p: AdamW(p, lr=0.01, weight_decay=1e-4),
        schedule: Schedule = "one_cycle",
    ) -> None:
        super().__init__()
        if schedule not in ("constant", "one_cycle", "cosine"):
            raise ValueError(f'schedule must be "constant", "one_cycle" or "cosine", not {schedule!r}')
        # objects are no hyperparameters; the command line adds both as the plain config that made them
        self.save_hyperparameters(ignore=["net", "optimizer"])
        self.net = net or ODENet()
        self.optimizer_of, self.schedule = optimizer, schedule
        self.train_acc = MulticlassAccuracy(CLASSES, average="micro")
        self.val_acc = MulticlassAccuracy(CLASSES, average="micro")
        self.test_acc = MulticlassAccuracy(CLASSES, average="micro")

    @property
    def num_params(self) -> int:
        """Number of trainable parameters."""
        return self.net.num_params

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(x)

    def _evaluate(self, batch: Batch, part: str, accuracy: MulticlassAccuracy) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch, the accuracy logged."""
        images, labels = batch
        logits = self.net(images).float()
        loss = F.cross_entropy(logits, labels)
        accuracy.update(logits.detach(), labels)
        self.log(f"{part}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=part != "test", batch_size=len(labels))
        return loss, logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss, logged with the learning rate."""
        del batch_idx
        loss, _ = self._evaluate(batch, "train", self.train_acc)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log loss and accuracy; return the logits for callbacks."""
        del batch_idx
        loss, logits = self._evaluate(batch, "val", self.val_acc)
        self.log("val/loss", loss, batch_size=len(logits), sync_dist=True)
        return {"logits": logits}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log loss and accuracy; return the logits for callbacks."""
        del batch_idx
        loss, logits = self._evaluate(batch, "test", self.test_acc)
        self.log("test/loss", loss, batch_size=len(logits), sync_dist=True)
        return {"logits": logits}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the digits and their probabilities."""
        del batch_idx
        images, _ = batch
        confidence, digit = self.net(images).float().softmax(1).max(1)
        return {"digit": digit, "confidence": confidence, "images": images[:, 0]}

    def configure_optimizers(self) -> Any:
        """The optimiser, with the schedule stepped every batch."""
        optimizer = self.optimizer_of(self.parameters())
        if self.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                f'the schedule "{self.schedule}" needs an end: give --trainer.max_epochs or --trainer.max_steps'
            )
        scheduler: LRScheduler = (
            OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=int(steps))
            if self.schedule == "one_cycle"
            else CosineAnnealingLR(optimizer, T_max=int(steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Refuse a resumed schedule that would end before the run does."""
        schedulers = self.lr_schedulers()
        planned = getattr(schedulers, "total_steps", None) or getattr(schedulers, "T_max", None)
        if planned is not None and planned < self.trainer.estimated_stepping_batches:
            raise ValueError(
                f"the checkpoint's {self.schedule} schedule ends after {planned} steps, but this run is to take "
                f"{int(self.trainer.estimated_stepping_batches)}: resume with the same length, or start afresh"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the warm steps beside the weights: evaluation starts its solves from them."""
        checkpoint["warm_steps"] = [block.warm_step for block in self.net.ode_blocks]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the warm steps back."""
        for block, step in zip(self.net.ode_blocks, checkpoint.get("warm_steps", []), strict=False):
            block.warm_step = step
