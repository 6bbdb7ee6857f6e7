"""EvaluationCounts: curves of the evaluations of the field, and a limit on those of a step."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.hooks import RemovableHandle
from torchmetrics import MeanMetric
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.solvers import SolveStats
from odenet_lightning.trainer import is_shown, is_written


class EvaluationCounts(Callback):
    """Logs evaluations of the field (NFE), summed over a network's ODE blocks.

    Where each image is solved by itself, they are the mean over the images, which is the cost of the batch.

    `nfe/forward`, `nfe/backward`: per batch in training, averaged over all batches since they were last
    written, also those of the epoch before; `nfe/backward` only where the gradient method evaluates the field in
    the backward pass. `nfe/val_forward`: per batch in validation, averaged over all of its batches.

    Of the last training batch: `solver/accepted` and `solver/rejected`, summed over the blocks;
    `solver/smallest_step`, the minimum over the blocks, and `solver/last_step`, the last step of the last
    solve, both in units of t; and, with `Adjoint`, `adjoint/y0_error`, the largest of its relative errors
    of y0. The relative error of the gradient is of that order (see `Adjoint`).

    Also keeps a budget: warns once when a batch's evaluations exceed half of `budget`, and ends the
    run, checkpoints kept, when they exceed all of it: training with dynamics this stiff makes no progress.
    `ODEBlock`'s `max_nfe` limits a single solve.

    Args:
        budget: most forward evaluations that a training batch may cost.
    """

    def __init__(self, budget: int = 1_000) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1, not {budget!r}")
        self.budget = budget
        self.warned = self.exceeded = False
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.validation = MeanMetric()
        self.solves: list[SolveStats] = []
        self.listening: list[RemovableHandle] = []

    @override
    def state_dict(self) -> dict[str, Any]:
        """The counts since they were last written, so that a resumed run averages over the same batches."""
        return {"forward": self.forward, "backward": self.backward}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.forward, self.backward = list(state_dict["forward"]), list(state_dict["backward"])

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in ("fit", "validate"):
            blocks = classifier(pl_module).net.ode_blocks
            self.listening = [block.register_solve_hook(self.solves.append) for block in blocks]

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for handle in self.listening:
            handle.remove()
        self.listening = []
        self.solves.clear()

    def _collect(self) -> list[SolveStats]:
        """The costs of the solves since the last call."""
        collected = list(self.solves)
        self.solves.clear()
        return collected

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._collect()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log the averages since the last written ones."""
        solves = self._collect()
        if solves:
            self._count(trainer, solves)
        if is_shown(trainer):
            for name, counts in (("nfe/forward", self.forward), ("nfe/backward", self.backward)):
                if counts:
                    pl_module.log(name, sum(counts) / len(counts), prog_bar=True)
            if solves:
                self._log_steps(pl_module, solves)
        if is_written(trainer):
            self.forward, self.backward = [], []

    def _count(self, trainer: Trainer, solves: list[SolveStats]) -> None:
        self.forward.append(sum(solve.evaluations for solve in solves))
        backward = [solve.backward.evaluations for solve in solves if solve.backward is not None]
        if backward:
            self.backward.append(sum(backward))
        self._keep_budget(trainer, self.forward[-1])

    def _log_steps(self, pl_module: LightningModule, solves: list[SolveStats]) -> None:
        off = max((solve.backward.y0_error for solve in solves if solve.backward is not None), default=0.0)
        if off > 0:
            pl_module.log("adjoint/y0_error", off)
        pl_module.log("solver/accepted", float(sum(s.accepted for s in solves)))
        pl_module.log("solver/rejected", float(sum(s.rejected for s in solves)))
        pl_module.log("solver/smallest_step", min(s.smallest_step for s in solves))
        pl_module.log("solver/last_step", solves[-1].last_step)

    def _keep_budget(self, trainer: Trainer, evaluations: float) -> None:
        if self.budget / 2 < evaluations <= self.budget and not self.warned:
            self.warned = True
            rank_zero_warn(f"a step cost {evaluations:g} evaluations of the field; the run ends beyond {self.budget}")
        self.exceeded = self.exceeded or evaluations > self.budget
        # every process must end together, whichever of them has the hard batch; asking at every step costs several
        # processes some of their speed
        if trainer.world_size > 1 and not is_shown(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self.exceeded, all=False):
            rank_zero_warn(
                f"a step cost more evaluations than the budget of {self.budget} ({evaluations:g} here): ending the "
                "run; try a smaller learning rate, more weight decay, looser tolerances or a fixed step"
            )
            trainer.should_stop = True

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._collect()

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        solves = self._collect()
        if solves:
            self.validation.update(sum(solve.evaluations for solve in solves))

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation.reset()
        self.validation.to(pl_module.device)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the average over the batches of all processes, which may not have the same number of them."""
        if classifier(pl_module).net.ode_blocks:
            pl_module.log("nfe/val_forward", self.validation.compute(), batch_size=1, sync_dist=True)
