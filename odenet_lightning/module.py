"""ClassifierModule: loss, optimiser and schedule around a network; no numerics of its own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from odenet_lightning.checkpoints.restorable import OBJECTS
from odenet_lightning.class_names import agreed_class_names
from odenet_lightning.compiling import compile_network
from odenet_lightning.divergence import refuse_loss
from odenet_lightning.evaluated import Evaluated, accuracy
from odenet_lightning.gradients import UnknownTensorError
from odenet_lightning.graphs import StepGraphs
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.optimizers import learning_rates
from odenet_lightning.regularizers import Regularizer, regularized
from odenet_lightning.schedules import Schedule, refuse_unknown, scheduler_of
from odenet_lightning.skipping import OnSolverError, Skips
from odenet_lightning.solvers import SolverError
from odenet_lightning.trainer import Batch, datamodule, images_and_labels, is_shown
from odenet_lightning.unsupported import refuse_unsupported


class ClassifierModule(Evaluated):
    """Trains a network on the cross-entropy of its logits.

    To resume bit-for-bit in a `Trainer` of your own, give it `callbacks.Resume()`, as the command line does.

    Args:
        net: images `[B, C, H, W]` -> logits `[B, K]`; by default the post's `ODENet`, for MNIST. The built-in networks
            have `image_shape` and `classes` for other data.
        optimizer: makes the optimiser from the parameters.
        schedule: "one_cycle" (Smith and Topin 2019; its peak is the optimiser's lr, and momentum or the first beta,
            where there is one, swings between 0.95 and 0.85), "cosine" to zero (Loshchilov and Hutter 2017), both
            over the run's length in steps, or "constant".
        on_solver_error: "raise" ends the run with the error, its checkpoints kept; "skip" discards the batch and any
            accumulated gradients, and counts it (`solver/skipped`), up to ten in a row. One process only, and not in
            16-mixed, whose scaler needs every batch.
        regularizer: makes the dynamics cheap to solve, in training alone; by default none. `train/loss` excludes it.
        compile: compile the ODE blocks' fields with torch.compile, or the whole network if it has no ODE block. Takes
            a minute at the start; state-dict keys stay the same.
        cuda_graph: run training steps of fixed-step solves as CUDA graphs (see `graphs`), with the same numbers to
            rounding; steps that cannot be one run as usual, with a warning. Its gain has not been measured on a GPU.
        class_names: of the K classes, for pictures and predictions; by default those of this project's data, when it is
            trained or tested on them. Checkpoints keep them.
    """

    def __init__(
        self,
        net: Classifier | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda p: AdamW(p, lr=0.01, weight_decay=1e-4),
        schedule: Schedule = "one_cycle",
        on_solver_error: OnSolverError = "raise",
        compile: bool = False,
        regularizer: Regularizer | None = None,
        cuda_graph: bool = False,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(net or ODENet())
        refuse_unknown(schedule)
        # objects are no hyperparameters; the command line adds them as the plain config that made them
        self.save_hyperparameters(ignore=list(OBJECTS))
        self.optimizer_of, self.regularizer = optimizer, regularizer
        self.schedule: Schedule = schedule
        self.skips, self.compiles, self.class_names = Skips(on_solver_error), compile, class_names
        self.wants_graphs = cuda_graph
        self.graphs: StepGraphs | None = None
        self.train_acc = accuracy()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        batch = images_and_labels(self.trainer, batch)
        try:
            taken = self.graphs.take(batch) if self.graphs else None
            loss, logits, value = (*taken, None) if taken else self._losses(*batch)
        except SolverError as error:
            self._skip(error)
            return None
        self.train_acc.update(logits.detach(), batch[1])
        if is_shown(self.trainer):
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True, batch_size=1)
            self._log_mean("train/loss", loss, prog_bar=True)
            if self.regularizer is not None and value is not None:
                self._log_mean(f"reg/{self.regularizer.name}", value)
            self.log_dict(learning_rates(self.trainer.optimizers[0]))
        return loss if self.regularizer is None or value is None else loss + self.regularizer.weight * value

    def _log_mean(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        """Log a loss's mean over the processes, and end a run where it is NaN or infinite."""
        mean = self.trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")  # in place
        self.log(name, mean, prog_bar=prog_bar)
        refuse_loss(mean, f"at step {self.trainer.global_step + 1}")

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss, the logits that it is of, and the mean over the ODE blocks of the regularizer's value."""
        data = datamodule(self.trainer)
        if data is not None and data.hands_out_pixels:
            with torch.autocast(images.device.type, enabled=False):
                images = data.prepare(images, is_training=True)
        with regularized(self.net, self.regularizer) as values:
            logits = self(images)
        return F.cross_entropy(logits, labels), logits, torch.stack(values).mean() if values else None

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            if not (self.graphs and self.graphs.took_step):
                super().backward(loss, *args, **kwargs)
            self.skips.solved()
        except UnknownTensorError as error:  # raised where only the field is known
            name = next((name for name, p in self.named_parameters() if p is error.tensor), "")
            raise UnknownTensorError(error.field, error.tensor, name) from error
        except SolverError as error:  # an adjoint solve can fail, too
            self._skip(error)

    def _skip(self, error: SolverError) -> None:
        self.skips.add(error)
        self.zero_grad()  # of this batch and of those accumulated
        self.log("solver/skipped", float(self.skips.total))

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_of(self.parameters())
        if self.schedule == "constant":
            return optimizer
        scheduler = scheduler_of(self.schedule, optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def setup(self, stage: str) -> None:
        refuse_unsupported(self.trainer, self.skips.allowed)
        if stage != "predict":
            self.class_names = self.hparams["class_names"] = agreed_class_names(self.trainer, self.class_names)
        if self.compiles and stage == "fit":
            compile_network(self.net, self.trainer.strategy.root_device)
            self.compiles = False  # once
        self.graphs = StepGraphs(self, self.net, self._losses) if self.wants_graphs and stage == "fit" else None
        data = datamodule(self.trainer)
        if data is not None:  # a graph takes their preparation along
            data.hands_out_pixels = self.graphs is not None

    @override
    def teardown(self, stage: str) -> None:
        self.graphs = None  # with the memory that they hold
