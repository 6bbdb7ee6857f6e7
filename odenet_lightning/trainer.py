"""What is asked of Lightning's Trainer in more than one place."""

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from odenet_lightning.data import MNISTDataModule


def is_written(trainer: Trainer) -> bool:
    """Whether scalars are written after this training step, or the epoch or the run ends with it.

    Each scalar logged costs a tenth of a millisecond, so they are logged only then.
    """
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    # Lightning's own count for loggers: unlike `global_step`, it goes on where a batch is skipped
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    return trainer.is_last_batch or step == trainer.max_steps or (every > 0 and step % every == 0)


def tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """The run's event file, on the process that writes it."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def datamodule(trainer: Trainer) -> MNISTDataModule | None:
    """The run's data module, where it is this project's."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, MNISTDataModule) else None
