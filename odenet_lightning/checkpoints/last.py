"""LastCheckpoint: the state to resume from."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

from odenet_lightning.checkpoints.interrupt import InterruptWatch, interrupted
from odenet_lightning.checkpoints.slurm import in_slurm, preempted, requeue


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, the state to resume from: after every epoch, within long ones, and before a preemption.

    Lightning's `ModelCheckpoint(save_last=True)` writes it only beside a new best one, so that a run
    resumed from it would repeat the epochs since.

    A resumed run begins with the next step, so everything that belongs to a step must be done before
    its state counts as kept: its validation, and the curves, which Lightning writes after all hooks.
    So the state is written at the step's end to a file beside (again after its validation), and takes
    the name `last.ckpt` when the next step, or the next epoch, begins.

    With one process, the first Ctrl-C has it keep the state after the step and end the run with code 130.

    Under SLURM, SIGUSR1 (`#SBATCH --signal`) has it keep the state, put the job back into the queue
    and end the run; the job's next start continues from the file. Lightning's own handler saves in the
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
        self.watch = InterruptWatch()
        self.step = 0  # the last one seen
        self.is_pending = self.is_preempted = False
        self.ends_epoch = 0  # epochs processed when the pending state was written, where it is an epoch's end

    @staticmethod
    def path(trainer: Trainer) -> Path | None:
        """Its path: beside the best one."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                # Lightning sets the folder only when the run starts
                folder = callback.dirpath or (Path(trainer.log_dir) / "checkpoints" if trainer.log_dir else None)
                return Path(folder) / "last.ckpt" if folder else None
        return None

    def _write(self, trainer: Trainer) -> None:
        path = self.path(trainer)
        if path is not None and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            trainer.save_checkpoint(pending(path), weights_only=False)
            self.is_pending = True

    def _keep(self, trainer: Trainer) -> None:
        """Let what was written count, now that its step is over."""
        path = self.path(trainer)
        if self.is_pending and path is not None and trainer.is_global_zero:
            pending(path).replace(path)
        self.is_pending = False

    def _is_preempted(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1 and interrupted.is_set():
            return True
        # the signal reaches the processes at different steps: they must stop after the same one
        return self.in_slurm and trainer.strategy.reduce_boolean_decision(preempted.is_set(), all=False)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second owner of `last.ckpt`."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and (callback.filename == "last" or callback.save_last):
                raise ValueError(
                    "last.ckpt is the state to resume from, which is kept anyway: leave out "
                    + ("--checkpoint.save_last" if callback.save_last else "--checkpoint.filename last")
                )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = trainer.global_step
        self.is_pending = self.is_preempted = False
        if trainer.world_size == 1:  # several would stop after different steps, and wait for each other
            self.watch.start()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            return  # not while gradients are being added up
        self.step, every = trainer.global_step, self.every_n_train_steps
        if trainer.is_last_batch:
            return  # which is left to the epoch's end
        self.is_preempted = self._is_preempted(trainer)
        if self.is_preempted or (every and trainer.global_step % every == 0):
            self.ends_epoch = 0
            self._write(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_pending:
            self._write(trainer)  # other callbacks, such as the best checkpoint's, have changed their state

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_preempted = self.is_preempted or self._is_preempted(trainer)
        self._write(trainer)
        self.ends_epoch = trainer.fit_loop.epoch_progress.current.completed + 1

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._keep(trainer)
        self._end(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)
        self._end(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)
        self.watch.stop()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.watch.stop()
        # Lightning raises the former between two steps; Ctrl-C comes anywhere, so only an epoch that is over counts
        epochs = trainer.fit_loop.epoch_progress.current
        if isinstance(exception, SIGTERMException) or 0 < self.ends_epoch <= epochs.completed:
            self._keep(trainer)

    def _end(self, trainer: Trainer) -> None:
        if not self.is_preempted:
            return
        self.is_preempted = False
        if interrupted.is_set():
            raise SystemExit(130)
        preempted.clear()
        if trainer.strategy.broadcast(requeue() if trainer.is_global_zero else False):
            rank_zero_warn(f"preempted at step {trainer.global_step}: state kept in {self.path(trainer)}, job requeued")
            raise SystemExit(0)
        rank_zero_warn("preempted, but the job could not be requeued: it continues until it is killed")


def pending(path: Path) -> Path:
    """Where a checkpoint waits for its step to be over."""
    return path.with_name(f".{path.name}.pending")
