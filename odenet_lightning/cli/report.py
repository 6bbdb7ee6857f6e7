"""The summary printed after a fit: where its files are, and the next commands."""

import os
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from odenet_lightning.callbacks.classifier import kind_of
from odenet_lightning.checkpoints import LastCheckpoint
from odenet_lightning.checkpoints.best import ACCURACY
from odenet_lightning.checkpoints.read import kept_model, load_checkpoint
from odenet_lightning.checkpoints.trust import foreign_texts
from odenet_lightning.cli.errors import PROGRAM
from odenet_lightning.cli.resume import from_weights
from odenet_lightning.data import ImageDataModule, MNISTDataModule
from odenet_lightning.module import ClassifierModule

Rows = list[tuple[str, str]]


def best_checkpoint(trainer: Trainer) -> tuple[str, tuple[str, float] | None]:
    """The best checkpoint's path, with the name and value of what it is best in; else the last one's; else nothing."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and Path(callback.best_model_path).is_file():
            score = callback.best_model_score
            return callback.best_model_path, None if score is None else (callback.monitor, float(score))
    last = LastCheckpoint.path(trainer)
    return (str(last), None) if last is not None and last.is_file() else ("", None)


def as_text(name: str, value: float) -> str:
    """A monitored value in its own unit: accuracies in per cent."""
    return f"{value:.2%}" if name.rpartition("/")[2] == "acc" else f"{value:.4g}"


def accuracy_beside(monitor: str, path: str) -> str:
    """The accuracy of a checkpoint that is best in something else, in brackets."""
    accuracy = None if monitor == ACCURACY else load_checkpoint(path).get("val_acc")
    return "" if accuracy is None else f" ({ACCURACY} {as_text(ACCURACY, accuracy)})"


def end_of_fit(trainer: Trainer, model: ClassifierModule, data: LightningDataModule) -> str:
    """The table printed after a fit."""
    rows: Rows = [seen(data)] if isinstance(data, ImageDataModule) else [("data", type(data).__name__)]
    rows.append(("trained", f"{trainer.current_epoch} epochs, {trainer.global_step:,} steps"))
    path, score = best_checkpoint(trainer)
    if score is not None:
        rows += [(f"best {score[0]}", as_text(*score) + accuracy_beside(score[0], path))]
        rows.append(("best checkpoint", os.path.relpath(path)))
    else:
        rows.append(("last checkpoint", os.path.relpath(path) if path else "none"))
    boards = [logger.root_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if boards:
        rows.append(("curves", f"tensorboard --logdir {os.path.relpath(boards[0])}"))
    if path:
        rows += next_commands(trainer, model, data, path)
    return "\n" + "\n".join(f"{name:<16} {value}" for name, value in rows)


def seen(data: ImageDataModule) -> tuple[str, str]:
    """Which digits, or pictures of other things, a run has seen, and how many."""
    train, val = (len(data.parts[part]) for part in ("train", "val"))
    kind = "digits" if kind_of(data.class_names) == "digit" else "pictures"
    return kind, f"{data.digits_used} ({train:,} to train, {val:,} to validate)"


def next_commands(trainer: Trainer, model: ClassifierModule, data: LightningDataModule, path: str) -> Rows:
    """Commands for a checkpoint, ready to run."""
    given = f"--ckpt_path {os.path.relpath(path)}"
    own = data if isinstance(data, ImageDataModule) else None
    settings: list[Any] = [
        kept_model(dict(model.hparams)) | {"class_names": None},
        own.hparams["augment"] if own else None,
    ]
    # classes of the user's own are imported only where the user names them
    # beside the first logger's files; trainer.log_dir would wait for the other processes
    folder = getattr(trainer.logger, "log_dir", None)
    if (own is None or foreign_texts(settings, set())) and folder is not None:
        given = f"--config {os.path.relpath(Path(folder) / 'config.yaml')} {given}"
    if own is None:
        return [("test it", f"{PROGRAM} test {given}")]
    again = ""
    if isinstance(own, MNISTDataModule):  # other data modules' checkpoints keep their root
        again = f" --data.root {own.root}" if str(own.root) != "data" else ""
        again += f" --data.source {own.source}" if own.source != "auto" else ""
    return [
        ("test it", f"{PROGRAM} test {given}{again}"),
        ("predict", f"{PROGRAM} predict {given} --data.images DIR"),
    ]


def complete(trainer: Trainer, model: ClassifierModule, path: str) -> str:
    """Why a run resumed from a checkpoint took no step, and what would have it take some."""
    told = "no step was taken: the checkpoint's run is complete"
    limits = {"--trainer.max_steps": trainer.max_steps, "--trainer.max_epochs": trainer.max_epochs}
    larger = " and a larger ".join(name for name, limit in limits.items() if limit is not None and limit >= 0)
    if model.schedule == "constant" and larger:
        return f"{told}; to continue, give a larger {larger}"
    return f"{told}, and so is its {model.schedule} schedule: {from_weights(path)}"


def how_to_resume(trainer: Trainer) -> str:
    """What is left of a run that has ended early."""
    last = LastCheckpoint.path(trainer)
    if last is None or not last.is_file():
        return "there is no checkpoint yet"
    return f"the same command with --ckpt_path {os.path.relpath(last)} resumes it"
