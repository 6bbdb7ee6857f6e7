"""LastCheckpoint: the state to resume from."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from odenet_lightning.checkpoints.slurm import in_slurm, preempted, requeue
from odenet_lightning.divergence import check_finite


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, the state to resume from: after every epoch, within long ones, and before a preemption.

    Lightning's `ModelCheckpoint(save_last=True)` writes it only beside a new best one, so that a run
    resumed from it would repeat the epochs since.

    Under SLURM, SIGUSR1 (`#SBATCH --signal`) has it write the file, put the job back into the queue
    and end the run; the job's next start goes on from the file. Lightning's own handler saves in the
    middle of a step, between the processes' collective calls; this one waits for the step's end, so
    that the weights come out as in an undisturbed run.

    Args:
        every_n_train_steps: how often within an epoch; 0 for its end alone.
    """

    def __init__(self, every_n_train_steps: int = 1_000) -> None:
        if every_n_train_steps < 0:
            raise ValueError(f"every_n_train_steps must not be negative, not {every_n_train_steps!r}")
        self.every_n_train_steps = every_n_train_steps
        self.in_slurm = in_slurm()
        self.step = 0  # the last one seen

    @staticmethod
    def path(trainer: Trainer) -> Path | None:
        """Where it lies: beside the best one."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                # Lightning sets the folder only when the run starts
                folder = callback.dirpath or (Path(trainer.log_dir) / "checkpoints" if trainer.log_dir else None)
                return Path(folder) / "last.ckpt" if folder else None
        return None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where a resumed run begins."""
        self.step = trainer.global_step

    def _save(self, trainer: Trainer) -> None:
        path = self.path(trainer)
        check_finite(trainer)
        if path is not None and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            trainer.save_checkpoint(path, weights_only=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch, where gradients are not being added up; its last step is left to the epoch's end."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        every = self.every_n_train_steps
        if every and trainer.global_step % every == 0 and not trainer.is_last_batch:
            self._save(trainer)
        # the signal reaches the processes at different steps: they must stop after the same one
        if self.in_slurm and not trainer.is_last_batch:
            self._requeue_if(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs: only now is the last one's train/acc written."""
        if self.in_slurm:
            self._requeue_if(trainer, saved=True)

    def _requeue_if(self, trainer: Trainer, saved: bool = False) -> None:
        if not trainer.strategy.reduce_boolean_decision(preempted.is_set(), all=False):
            return
        preempted.clear()
        if not saved:
            self._save(trainer)
        requeued = trainer.strategy.broadcast(requeue() if trainer.is_global_zero else False)
        if requeued:
            rank_zero_warn(f"preempted at step {trainer.global_step}: state kept in {self.path(trainer)}, job requeued")
            raise SystemExit(0)
        rank_zero_warn("preempted, but the job could not be requeued: going on until it is killed")
