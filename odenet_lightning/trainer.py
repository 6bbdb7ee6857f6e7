"""Queries of Lightning's Trainer that several modules share."""

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from odenet_lightning.data import ImageDataModule

Batch = tuple[Tensor, Tensor]


def is_written(trainer: Trainer) -> bool:
    """Whether Lightning writes scalars after this training batch."""
    return not trainer.fit_loop._should_accumulate() and trainer._logger_connector.should_update_logs


def is_shown(trainer: Trainer) -> bool:
    """Whether scalars are wanted after this training batch: they are written, or the epoch or the run ends with it.

    Each scalar logged costs a tenth of a millisecond, so they are logged only then.
    """
    # Lightning's own count for loggers: unlike `global_step`, it also counts skipped batches
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    return is_written(trainer) or trainer.is_last_batch or step == trainer.max_steps


def tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """The run's event file, on the process that writes it."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def datamodule(trainer: Trainer) -> ImageDataModule | None:
    """The run's data module, where it is this project's."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, ImageDataModule) else None


def images_and_labels(trainer: Trainer, batch: Any) -> Batch:
    """A batch as a step needs it."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    data = getattr(trainer, "datamodule", None)
    giver = "the loader" if data is None else type(data).__name__
    size = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
    raise ValueError(f"{giver} gives a {type(batch).__name__}{size}, needs batches of two: images, labels")


def validation_images(trainer: Trainer, most: int) -> Tensor:
    """The first validation images of this process, `[N, C, H, W]`, as a validation step gets them."""
    found: list[Tensor] = []
    loaders = trainer.val_dataloaders
    for batch in loaders[0] if isinstance(loaders, list) else loaders:  # pyright: ignore[reportOptionalIterable]
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch)
        found.append(trainer.strategy.batch_to_device(batch)[0])
        if sum(map(len, found)) >= most:
            break
    return torch.cat(found)[:most]


def continue_at(fit_loop: dict[str, Any], accumulated: int) -> bool:
    """Bring a checkpoint's counters into the one form from which Lightning continues where the run was.

    Lightning saves within hooks, so that its counters tell the hook rather than the place in the data; and with
    max_steps set it takes every checkpoint for one from within an epoch.

    Args:
        fit_loop: the state of Lightning's fit loop, changed in place.
        accumulated: batches per step.

    Returns:
        Whether the run continues with the next epoch; else it continues after the last batch of the checkpoint.

    Raises:
        ValueError: the checkpoint was saved within a step.
    """
    epochs, batches = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    logged = fit_loop["epoch_loop.state_dict"]
    if batches["current"]["ready"] != batches["current"]["processed"]:
        raise ValueError(
            "the checkpoint was saved within a step, so a resumed run would leave out its batch: take one saved after "
            "a step, in on_train_batch_end, say"
        )
    if batches["current"]["ready"] == 0:  # saved before the first batch
        return False
    was_ending = epochs["current"]["processed"] == epochs["current"]["started"]  # saved in an epoch's last hooks
    is_whole = batches["is_last_batch"]
    for progress in (epochs["total"], epochs["current"]):
        progress["ready"] = progress["started"]
        progress["processed"] = progress["completed"] = progress["started"] - (not is_whole)
    if is_whole:
        # the loader's place is its end, and the step of its last batch is counted
        fit_loop["state_dict"].pop("combined_loader", None)
        logged["_batches_that_stepped"] += not was_ending
    elif was_ending:
        # as saved in the hook after the last batch: Lightning then counts that batch, and does not validate again
        for progress in (batches["total"], batches["current"]):
            progress["completed"] -= 1
        logged["_batches_that_stepped"] -= batches["current"]["ready"] % accumulated == 0
    return is_whole


def start_next_epoch(trainer: Trainer) -> None:
    """Have a resumed run begin its epoch afresh, its pass through the data too; to be called when training starts.

    Lightning begins the first pass before the random state is restored, and keeps it where it resumes.
    """
    trainer.fit_loop.on_iteration_done()  # resumes no longer
    trainer.fit_loop.epoch_loop.restarting = False
