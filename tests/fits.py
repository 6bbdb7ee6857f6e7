"""Short fits on the command line."""

from pathlib import Path
from typing import Any

import torch

SIZE = 100_000
FIT = ["fit", "--data.source", "sample", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
SHORT = ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"]


def content(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((SIZE,), value)}, "pytorch-lightning_version": "2"}


def stored(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"][-1])
