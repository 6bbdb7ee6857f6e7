"""ClassifierModule: loss, metrics and optimiser around a network; no numerics of its own."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from odenet_lightning.divergence import REMEDY, DivergenceError
from odenet_lightning.models import CLASSES, Classifier, ODENet
from odenet_lightning.solvers import SolverError
from odenet_lightning.trainer import is_written

Schedule = Literal["constant", "one_cycle", "cosine"]
Batch = tuple[Tensor, Tensor]

MAX_SKIPS = 10  # batches in a row left out before the run ends
ACCURACY_COUNTS = ("tp", "fp", "tn", "fn")  # what torchmetrics' accuracy adds up


def full_precision(x: Tensor) -> Tensor:
    """float32 of 16 bits, anything else as it is: losses are not for half precision."""
    return x if x.dtype == torch.float64 else x.float()


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random numbers, on the CPU and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Take a state up again; one of another kind of device is left out."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


class ClassifierModule(LightningModule):
    """Trains a network on the cross-entropy of its logits.

    Args:
        net: images `[B, 1, 28, 28]` -> logits `[B, 10]`; by default the post's `ODENet`.
        optimizer: makes the optimiser from the parameters.
        schedule: "one_cycle" (Smith and Topin 2019; its peak is the optimiser's lr, and momentum or
            the first beta, where there is one, swings between 0.95 and 0.85), "cosine" to
            zero (Loshchilov and Hutter 2017), both over the run's length in steps, or "constant".
        on_solver_error: "raise" ends the run with the error, its checkpoints kept; "skip" leaves the
            batch out, with the gradients accumulated so far, and counts it (`solver/skipped`), up to
            `MAX_SKIPS` in a row. One process only, and not in 16-mixed, whose scaler needs every batch.
        compile: have torch.compile run the solver's step, or, in a network without ODE blocks, the
            network. Costs a minute at the start; state-dict keys stay.
    """

    def __init__(
        self,
        net: Classifier | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda p: AdamW(p, lr=0.01, weight_decay=1e-4),
        schedule: Schedule = "one_cycle",
        on_solver_error: Literal["raise", "skip"] = "raise",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if schedule not in ("constant", "one_cycle", "cosine"):
            raise ValueError(f'schedule must be "constant", "one_cycle" or "cosine", not {schedule!r}')
        if on_solver_error not in ("raise", "skip"):
            raise ValueError(f'on_solver_error must be "raise" or "skip", not {on_solver_error!r}')
        # objects are no hyperparameters; the command line adds both as the plain config that made them
        self.save_hyperparameters(ignore=["net", "optimizer"])
        self.net = net or ODENet()
        self.optimizer_of, self.schedule = optimizer, schedule
        self.on_solver_error, self.compile_solve = on_solver_error, compile
        self.skipped = self.skipped_in_a_row = 0
        self.resumed: dict[str, Any] = {}
        self.resumed_step: int | None = None
        self.train_acc = MulticlassAccuracy(CLASSES, average="micro", validate_args=False)
        self.val_acc = MulticlassAccuracy(CLASSES, average="micro", validate_args=False)
        self.test_acc = MulticlassAccuracy(CLASSES, average="micro", validate_args=False)
        # Lightning's own mean over processes rounds their numbers of images down to whole ones
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()

    @property
    def num_params(self) -> int:
        """Number of trainable parameters."""
        return self.net.num_params

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(x)

    def _evaluate(self, batch: Batch, accuracy: MulticlassAccuracy) -> tuple[Tensor, Tensor]:
        """Loss and logits of a batch, its right answers counted."""
        images, labels = batch
        logits = full_precision(self.net(images))
        loss = F.cross_entropy(logits, labels)
        accuracy.update(logits.detach(), labels)
        return loss, logits

    def _log_accuracy(self, part: str, accuracy: MulticlassAccuracy) -> None:
        """Have the accuracy computed at the epoch's end, from its own counts."""
        self.log(f"{part}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=part != "test", batch_size=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss, logged with the learning rate; None for a batch that is skipped."""
        del batch_idx
        try:
            loss, _ = self._evaluate(batch, self.train_acc)
        except SolverError as error:
            self._skip_or_raise(error)
            return None
        if is_written(self.trainer):
            self._log_accuracy("train", self.train_acc)
            self.log("train/loss", loss.detach(), prog_bar=True)
            if not loss.isfinite():
                raise DivergenceError(
                    f"the loss is {float(loss.detach())} at step {self.trainer.global_step + 1}: {REMEDY}"
                )
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Back-propagate; an adjoint solve can fail here, too."""
        try:
            super().backward(loss, *args, **kwargs)
            self.skipped_in_a_row = 0
        except SolverError as error:
            self._skip_or_raise(error)
            self.zero_grad()  # half a gradient is none

    def _skip_or_raise(self, error: SolverError) -> None:
        """Count a batch whose solve failed, or end the run."""
        if self.on_solver_error == "raise":
            raise error
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        self.log("solver/skipped", float(self.skipped))
        if self.skipped_in_a_row > MAX_SKIPS:
            raise SolverError(f"{self.skipped_in_a_row} batches in a row could not be solved; the last: {error}")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log loss and accuracy; return the logits for callbacks."""
        del batch_idx
        loss, logits = self._evaluate(batch, self.val_acc)
        self._log_accuracy("val", self.val_acc)
        self.val_loss.update(loss, weight=len(logits))
        self.log("val/loss", self.val_loss, batch_size=len(logits))
        return {"logits": logits}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log loss and accuracy; return the logits for callbacks."""
        del batch_idx
        loss, logits = self._evaluate(batch, self.test_acc)
        self._log_accuracy("test", self.test_acc)
        self.test_loss.update(loss, weight=len(logits))
        self.log("test/loss", self.test_loss, batch_size=len(logits))
        return {"logits": logits}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the digits and their probabilities."""
        del batch_idx
        images, _ = batch
        confidence, digit = full_precision(self.net(images)).softmax(1).max(1)
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
        # torch would also give momentum to an optimiser that was asked to have none
        has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
        peaks = [group["lr"] for group in optimizer.param_groups]
        scheduler: LRScheduler = (
            OneCycleLR(optimizer, peaks, total_steps=int(steps), cycle_momentum=has_momentum)
            if self.schedule == "one_cycle"
            else CosineAnnealingLR(optimizer, T_max=int(steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_model(self) -> None:
        """Compile, where asked for and possible; a machine without a compiler goes on without."""
        if not self.compile_solve or self.trainer.state.fn != "fit":
            return
        self.compile_solve = False  # once
        try:
            torch.compile(torch.sin)(torch.zeros(2, device=self.device))
        except Exception as error:
            rank_zero_warn(f"no compiler to be had ({str(error).splitlines()[0][:120]}): going on without")
            return
        for block in self.net.ode_blocks:
            block.compile_solve()
        if not self.net.ode_blocks:
            self.net.compile()

    def setup(self, stage: str) -> None:
        """Refuse weights in 16 bits: they would make the state and its step control as coarse."""
        if self.trainer.precision in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
            raise ValueError(f"precision {self.trainer.precision} is not for ODEs: use bf16-mixed or 16-mixed")

    def on_fit_start(self) -> None:
        """Refuse to skip where others wait for this process's gradients, or for a loss's scale."""
        if self.on_solver_error == "skip" and self.trainer.world_size > 1:
            raise ValueError('on_solver_error = "skip" works in one process only; use "raise" in several')
        if self.on_solver_error == "skip" and self.trainer.precision == "16-mixed":
            raise ValueError('on_solver_error = "skip" does not go with 16-mixed: use bf16-mixed, or "raise"')

    def on_train_start(self) -> None:
        """Go on where a checkpoint ended; refuse a schedule that would end before the run does."""
        self._go_on()
        schedulers = self.lr_schedulers()
        planned = getattr(schedulers, "total_steps", None) or getattr(schedulers, "T_max", None)
        if planned is not None and planned < self.trainer.estimated_stepping_batches:
            raise ValueError(
                f"the checkpoint's {self.schedule} schedule ends after {planned} steps, but this run is to take "
                f"{int(self.trainer.estimated_stepping_batches)}: resume with the same length, or start afresh"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let all processes start their next solves alike."""
        del outputs, batch, batch_idx
        blocks = [block for block in self.net.ode_blocks if block.warm_step is not None]
        if self.trainer.world_size > 1 and blocks:
            steps = torch.tensor([block.warm_step for block in blocks], dtype=torch.float32, device=self.device)
            shared = self.trainer.strategy.reduce(steps, reduce_op="min")
            for block, step in zip(blocks, shared.tolist(), strict=True):
                block.warm_step = step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep, beside the weights, all that the next step depends on."""
        checkpoint["warm_steps"] = [block.warm_step for block in self.net.ode_blocks]
        if self.trainer.state.fn == "fit":
            checkpoint["rng"] = self._of_all_processes(rng_state(self.trainer.strategy.root_device))
            checkpoint["train_acc"] = {
                name: self.trainer.strategy.reduce(getattr(self.train_acc, name).clone(), reduce_op="sum")
                for name in ACCURACY_COUNTS
            }

    def _of_all_processes(self, value: Any) -> list[Any]:
        """Everyone's value, on every process."""
        if self.trainer.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the warm steps back, and in a resumed run what `on_train_start` needs."""
        for block, step in zip(self.net.ode_blocks, checkpoint.get("warm_steps", []), strict=False):
            block.warm_step = step
        self.resumed_step = checkpoint.get("global_step", 0)
        self.resumed = {key: checkpoint[key] for key in ("rng", "train_acc") if key in checkpoint}

    def _go_on(self) -> None:
        """Random numbers and the epoch's counts, as they were when the checkpoint was written."""
        states = self.resumed.get("rng", [])
        if len(states) == self.trainer.world_size:
            set_rng_state(states[self.global_rank], self.device)
        # the counts are sums over all processes: one of them goes on with them
        if self.trainer.is_global_zero and self.trainer.fit_loop.restarted_mid_epoch:
            for name, count in self.resumed.get("train_acc", {}).items():
                setattr(self.train_acc, name, count.to(self.device))
        self.resumed = {}


def classifier(module: LightningModule) -> ClassifierModule:
    """The module as what it is; these callbacks serve no other."""
    assert isinstance(module, ClassifierModule)
    return module
