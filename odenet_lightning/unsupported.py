"""Settings that do not work with Neural ODEs, refused before the first batch."""

from lightning import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning_utilities.core.rank_zero import rank_zero_warn

from odenet_lightning.data import MNISTDataModule

LOW_PRECISIONS = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")


def refuse_unsupported(trainer: Trainer, skips: bool) -> None:
    """Refuse settings that would train wrongly, and warn of misleading ones."""
    if trainer.precision in LOW_PRECISIONS:  # they would make the state and its step control as coarse
        raise ValueError(f"precision {trainer.precision} is not for ODEs: use bf16-mixed or 16-mixed")
    if trainer.state.fn != "fit":
        return
    if skips and trainer.world_size > 1:  # the others would wait for this process's gradients
        raise ValueError('on_solver_error = "skip" works in one process only; use "raise" in several')
    if skips and trainer.precision == "16-mixed":  # whose scaler needs every batch
        raise ValueError('on_solver_error = "skip" does not go with 16-mixed: use bf16-mixed, or "raise"')
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, LearningRateFinder):  # it sets the optimiser's rate, which a schedule then overwrites
            raise ValueError("LearningRateFinder does not go with schedules: compare a few --model.optimizer.lr")
        if isinstance(callback, BatchSizeFinder) and isinstance(getattr(trainer, "datamodule", None), MNISTDataModule):
            raise ValueError(
                "BatchSizeFinder ends where memory does, and these small images never fill it: give --data.batch_size"
            )
        if isinstance(callback, StochasticWeightAveraging):  # it averages after the last checkpoint and validation
            raise ValueError(
                "StochasticWeightAveraging leaves its weights in no checkpoint: use EMAWeightAveraging, which does"
            )
        if isinstance(callback, EMAWeightAveraging):
            step, epoch = callback.update_starting_at_step, callback.update_starting_at_epoch
            if step or epoch:
                start = f"step {step}" if step else f"epoch {epoch}"
                rank_zero_warn(
                    f"EMAWeightAveraging averages from {start} on; validation until then measures the untrained weights"
                )


def refuse_spawning(trainer: Trainer) -> None:
    """Refuse strategies that train in processes of their own and hand back neither counters nor metrics to report."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError("ddp_spawn, ddp_fork and ddp_notebook hand no results back: use --trainer.strategy ddp")
