"""The trainer's settings where none are given: logger, callbacks, progress bar, length, and files written whole."""

import os
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Callback
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from odenet_lightning.callbacks import (
    EpochLines,
    EventFile,
    PredictionWriter,
    ProgressBar,
    Resume,
    TestReport,
    Throughput,
)
from odenet_lightning.checkpoints import WholeCheckpointIO, in_slurm, is_requeued
from odenet_lightning.cli.choices import RunLength
from odenet_lightning.cli.errors import UsageError

ALWAYS = (Resume, Throughput, EventFile, EpochLines, TestReport, PredictionWriter)


def trainer_settings(given: Namespace, command: str | None) -> tuple[dict[str, Any], list[Callback]]:
    """The settings to add to those that are given, and the callbacks of every run.

    A logger without stub metrics, a progress bar for terminals only, a length where none is given.

    Raises:
        UsageError: a setting that Lightning would misread, or blame others for.
    """
    refuse(given)
    added: dict[str, Any] = {}
    callbacks: list[Callback] = [kind() for kind in ALWAYS]
    if given.logger is None and command in ("validate", "test"):
        added["logger"] = False  # they print their results, and are no runs among the others
    elif given.logger in (None, True):
        root = given.default_root_dir or "."
        added["logger"] = TensorBoardLogger(
            save_dir=root, name="lightning_logs", version=version(root, command), default_hp_metric=False
        )
    if given.enable_progress_bar is None:
        added["enable_progress_bar"] = sys.stdout.isatty()
    own = given.callbacks if isinstance(given.callbacks, list) else [given.callbacks]
    has_bar = any(isinstance(callback, LightningProgressBar) for callback in own)
    if added.get("enable_progress_bar", given.enable_progress_bar) and not has_bar:
        callbacks.append(ProgressBar())
    if given.enable_model_summary is None:
        added["enable_model_summary"] = False
    if given.max_epochs is None and given.max_steps == -1:
        added["max_epochs"] = -1
        callbacks.append(RunLength())
    plugins = given.plugins or []
    added["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpointIO()]
    return added, callbacks


def refuse(given: Namespace) -> None:
    """Refuse settings of Lightning's that it would misread, or blame others for."""
    if given.barebones:  # it would blame the logger and the callbacks that are added
        raise UsageError(
            "--trainer.barebones is for loops without logging and checkpoints: give --trainer.logger false and "
            "--trainer.enable_checkpointing false instead"
        )
    for name in ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch"):
        if isinstance(given[name], int | float) and given[name] <= 0:
            raise UsageError(f"--trainer.{name} must be positive, not {given[name]}")


def version(root: str, command: str | None) -> str | None:
    """A SLURM job's own number for its fit, to be found again when it is requeued; else the next free number."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or command != "fit" or not in_slurm():
        return None
    taken = (Path(root) / "lightning_logs" / job / "config.yaml").is_file()
    return job if is_requeued() or not taken else None
