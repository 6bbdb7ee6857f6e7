"""Runs in float64 whose steps may be recorded, for the CPU and the GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.optim import AdamW, Optimizer

from odenet_lightning import ClassifierModule, ODENet
from odenet_lightning.models import Classifier
from odenet_lightning.optimizers import MuonWithAdamW
from odenet_lightning.schedules import Schedule
from odenet_lightning.solvers import Midpoint
from tests.training import FewDigits, trainer_in


def muon(parameters: Any) -> Optimizer:
    return MuonWithAdamW(parameters, betas=(0.9, 0.95))


def adamw(parameters: Any) -> Optimizer:
    return AdamW(parameters, lr=0.01, weight_decay=1e-4)


def run(
    folder: Path,
    cuda_graph: bool,
    net: Callable[[], Classifier] = lambda: ODENet(2, solver=Midpoint(num_steps=1)),
    optimizer: Callable[..., Optimizer] = adamw,
    batches: int = 8,
    data: LightningDataModule | None = None,
    fit: dict[str, Any] | None = None,
    schedule: Schedule = "one_cycle",
    **options: Any,
) -> tuple[ClassifierModule, Trainer]:
    """A run in float64, where rounding does not grow to what a mistake would be."""
    torch.manual_seed(0)
    module = ClassifierModule(net(), optimizer, schedule, cuda_graph=cuda_graph)
    trainer = trainer_in(folder, **{"max_epochs": 1, "precision": "64-true", "limit_val_batches": 0, **options})
    trainer.fit(module, data or FewDigits(batches, 4), **(fit or {}))
    return module, trainer


def weights(module: ClassifierModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.net.parameters()])


def distance(one: ClassifierModule, other: ClassifierModule) -> float:
    return float((weights(one) - weights(other)).abs().max())
