"""Training for studies: AdamW with one cycle for a fixed number of epochs, without files or prints."""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from torch.optim import AdamW

from odenet_lightning.callbacks import CoarseStart
from odenet_lightning.checkpoints import WholeCheckpointIO
from odenet_lightning.data import MNISTDataModule
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.regularizers import Regularizer
from odenet_lightning.solvers import FixedStep, Midpoint
from odenet_lightning.studies.study import Study


def trainer_for(device: str, **kwargs: Any) -> Trainer:
    """A trainer that leaves no files and prints nothing, unless its arguments say otherwise."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {
        "accelerator": "gpu" if device.startswith("cuda") else "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1_000_000,  # the ends of epochs are written all the same
    }
    return Trainer(**{**quiet, **kwargs})


def train(
    make: Callable[[], Classifier],
    data: MNISTDataModule,
    epochs: int,
    seed: int,
    device: str,
    lr: float = 0.01,
    callbacks: Sequence[Callback] = (),
    regularizer: Regularizer | None = None,
    steps: int | None = None,
) -> ClassifierModule:
    """Train a network by AdamW with one cycle for a fixed number of epochs, and keep the last, not the best.

    Args:
        make: makes the network, after the seed is set.
        data: its digits, shuffled in a copy's own order.
        epochs: passes over them.
        seed: of weights and order.
        device: "cpu" or "cuda".
        lr: the cycle's peak.
        callbacks: Lightning's.
        regularizer: see `ClassifierModule`.
        steps: batches per epoch, at most; by default all.
    """
    seed_everything(seed, verbose=False)
    optimizer = partial(AdamW, lr=lr, weight_decay=1e-4)
    module = ClassifierModule(make(), optimizer, regularizer=regularizer)
    limits = {"limit_val_batches": 0, "limit_train_batches": steps}
    trainer = trainer_for(device, max_epochs=epochs, callbacks=list(callbacks), **limits)
    with torch.enable_grad():  # Lightning alone would not restore what was set before
        trainer.fit(module, copy.copy(data))
    module.to(device)
    return module


def trained_odenet(study: Study, epochs: int, solver: FixedStep | None = None) -> ODENet:
    """The post's network in evaluation mode, its weights kept in the study's folder for this code and machine.

    Trained with the given solver alone; or, where none is given, with one midpoint step, and in the last epoch two.
    """
    callbacks = [] if solver else [CoarseStart(Midpoint(num_steps=1), epochs - 1)]
    recipe = [type(solver).__name__, solver.num_steps] if solver else None
    key = json.dumps([recipe, epochs, study.provenance], sort_keys=True)
    solver = solver or Midpoint(num_steps=2)
    net = ODENet(solver=solver)
    path = study.folder / "weights" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"
    if path.is_file():
        net.load_state_dict(torch.load(path, weights_only=True))
    else:
        data, make = study.data(), lambda: ODENet(solver=solver)
        module = train(make, data, epochs, study.seed, study.device, 0.03, callbacks)
        net.load_state_dict(module.net.state_dict())
        WholeCheckpointIO().save_checkpoint(net.state_dict(), path)
    return net.to(study.device).eval()
