"""Short runs, and what is read from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

SCALARS = ("train/loss", "train/acc", "val/acc", "val/loss", "nfe/forward", "nfe/val_forward", "lr")


def trainer_in(folder: Path, **options: Any) -> Trainer:
    """A silent trainer on the CPU."""
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{"accelerator": "cpu", "devices": 1, "default_root_dir": folder, **silent, **options})


class FewDigits(LightningDataModule):
    """The same made-up batches every time, in order."""

    def __init__(self, batches: int = 4, size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (torch.rand(size, 1, 28, 28, generator=generator) * 2 - 1, torch.randint(10, (size,), generator=generator))
            for _ in range(batches)
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches[:2], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches[:2], batch_size=None)  # type: ignore[arg-type]


def sgd(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def curves(folder: Path, before: int | None = None) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every curve, of steps below `before`.

    In the order of steps: event files of one second are read in the order of their names, which end in a process id.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: sorted((e.step, e.value) for e in events.Scalars(tag) if before is None or e.step < before)
        for tag in SCALARS
        if tag in events.Tags()["scalars"]
    }
