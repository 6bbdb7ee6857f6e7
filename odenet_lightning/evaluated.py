"""Evaluated: what the LightningModule computes outside training: logits, metrics of them, and predictions."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from odenet_lightning.checkpoints.restorable import Restorable
from odenet_lightning.divergence import refuse_loss
from odenet_lightning.models import CLASSES, Classifier, refuse_no_logits
from odenet_lightning.trainer import Batch, images_and_labels


def accuracy() -> MulticlassAccuracy:
    """The share of images predicted right: a micro average comes out right whatever the number of classes."""
    return MulticlassAccuracy(CLASSES, average="micro", validate_args=False)


class Evaluated(Restorable):
    """A network that is validated and tested, and predicts.

    Logs `val/loss`, `val/acc`, `test/loss` and `test/acc`, means over all images of the set, and ends a run whose
    validation loss is NaN or infinite.
    """

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.net = net
        self.val_acc, self.test_acc = accuracy(), accuracy()
        # Lightning's own mean over processes rounds their numbers of images down to whole ones. NaN is put in the place
        # of NaN: by default torchmetrics leaves it out, and with "disable" the weights
        self.val_loss, self.test_loss = (MeanMetric(nan_strategy=math.nan) for _ in range(2))

    @property
    def num_params(self) -> int:
        """Number of trainable parameters."""
        return self.net.num_params

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits = refuse_no_logits(self.net, self.net(x), x)
        return logits if logits.dtype == torch.float64 else logits.float()  # losses are not for half precision

    def _evaluate(self, part: str, batch: Batch, mean: MeanMetric, right: MulticlassAccuracy) -> dict[str, Tensor]:
        """Log loss and accuracy, from their own sums; return the logits for callbacks."""
        images, labels = images_and_labels(self.trainer, batch)
        logits = self(images)
        mean.update(F.cross_entropy(logits, labels), weight=len(labels))
        right.update(logits, labels)
        self.log(f"{part}/acc", right, on_step=False, on_epoch=True, prog_bar=part == "val", batch_size=1)
        self.log(f"{part}/loss", mean, batch_size=len(labels))
        return {"logits": logits}

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate("val", batch, self.val_loss, self.val_acc)

    @override
    def on_validation_epoch_end(self) -> None:
        # a validation_step of the user's own counts nothing
        if self.trainer.state.fn == "fit" and self.val_loss.update_called:
            refuse_loss(self.val_loss.compute(), f"in validation after step {self.trainer.global_step}")

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate("test", batch, self.test_loss, self.test_acc)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, _ = images_and_labels(self.trainer, batch)
        return {"probabilities": self(images).softmax(1), "images": images}
