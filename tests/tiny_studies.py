"""Studies in their smallest versions, and the command that runs them."""

from pathlib import Path

import pytest

from odenet_lightning.cli import main

PROVENANCE = {"seed", "version", "commit", "torch", "hardware", "threads", "config"}


def run_here(args: list[str], folder: Path, threads: int | None = None) -> float:
    """A command of a study, cut short and in this process: importing everything again would take most of the time."""
    short = [
        "--trainer.limit_train_batches",
        "21",
        "--trainer.limit_val_batches",
        "1",
        "--pictures.every_n_epochs",
        "0",
    ]
    if "--trainer.devices" in args:
        args = [*args, "--trainer.devices", "1"]
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*args, *short])
    return 1.0
