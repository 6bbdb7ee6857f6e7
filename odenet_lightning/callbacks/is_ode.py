"""IsODE: whether what was trained is an ODE, at the end of every run."""

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.certificate import Certificate, certify
from odenet_lightning.solvers import SolverError
from odenet_lightning.trainer import tensorboard


class IsODE(Callback):
    """Says at the end of `fit`, `validate` and `test` whether the network is an ODE (see `certificate`).

    In `fit` it looks at validation images, those of the last validation's first batches, and at no test image; scalars
    `ode/...`. With several processes, at the images of the first. A network without an ODE block is left alone.

    Args:
        images: how many; 0 switches it off.
    """

    def __init__(self, images: int = 1_000) -> None:
        if images < 0:
            raise ValueError(f"images must not be negative, not {images}")
        self.images = images
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.certificate: Certificate | None = None

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen = []

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        room = self.images - sum(len(labels) for _, labels in self.seen)
        if room > 0 and not trainer.sanity_checking:
            images, labels = batch
            self.seen.append((images[:room], labels[:room]))

    on_test_epoch_start, on_test_batch_end = on_validation_epoch_start, on_validation_batch_end

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._say(trainer, pl_module)

    def _say(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the certificate, print it and write it, on the first process."""
        seen, self.seen = self.seen, []
        if not seen or not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        images, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
        try:
            with trainer.precision_plugin.forward_context():
                self.certificate = certify(classifier(pl_module).net, images, labels)
        except SolverError as error:
            print(f"is it an ODE           no: an accurate solver cannot solve it: {error}", flush=True)
            return
        if self.certificate is None:
            return
        print("\n" + "\n".join(f"{name:<22} {value}" for name, value in self.certificate.rows()), flush=True)
        writer = tensorboard(trainer) if trainer.state.fn == "fit" else None
        if writer is not None:
            for name, value in self.certificate.scalars().items():
                if math.isfinite(value):  # NaN and infinity are no JSON, which TensorBoard's page reads
                    writer.add_scalar(f"ode/{name}", value, max(0, trainer.global_step - 1))

    on_fit_end = on_test_end = _say
