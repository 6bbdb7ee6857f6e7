"""Networks to study: from a checkpoint, or trained here."""

import copy
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning import Callback, Trainer, seed_everything
from torch.optim import AdamW

from odenet_lightning.callbacks import CoarseStart
from odenet_lightning.checkpoints import WholeCheckpointIO
from odenet_lightning.cli.argv import texts
from odenet_lightning.cli.errors import UsageError
from odenet_lightning.cli.trust import foreign_texts, load_checkpoint
from odenet_lightning.data import MNISTDataModule
from odenet_lightning.models import Classifier, ODENet, OneBlock
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import Midpoint, RungeKutta
from odenet_lightning.studies.study import Study


def load_network(path: str, trusted: str | None = None) -> Classifier:
    """The network of a checkpoint that a fit on the command line has written, in evaluation mode.

    Args:
        path: the checkpoint.
        trusted: a module or package of the user's own, whose classes may be imported.

    Raises:
        UsageError: no such checkpoint, one that does not say what its network is, or a network that has no ODE block
            or parts of other modules' classes.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint["hyper_parameters"].get("net") if "hyper_parameters" in checkpoint else None
    if not isinstance(config, dict):
        raise UsageError(f"{path} does not say what its network is: write one with 'python -m odenet_lightning fit'")
    own = rf"{re.escape(trusted)}(\.[A-Za-z_]\w*)*" if trusted else ""
    for text in foreign_texts(config, {text for text in texts(config) if re.fullmatch(own, text)}):
        raise UsageError(
            f"{path} names {text[:80]!r}, and importing that would run its code: "
            "if you trust it, name its module (--trusted MODULE)"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Classifier, "net")
    net: Classifier = parser.instantiate_classes(parser.parse_object({"net": config}))["net"]
    weights = checkpoint["state_dict"]
    net.load_state_dict({key.removeprefix("net."): weights[key] for key in weights if key.startswith("net.")})
    for block, step in zip(net.ode_blocks, checkpoint.get("warm_steps", []), strict=False):
        block.warm_step = step
    if not net.ode_blocks:
        raise UsageError(f"{path} holds a {type(net).__name__}, which has no ODE block to study")
    return net.eval()


def trainer_for(device: str, **kwargs: Any) -> Trainer:
    """A trainer that leaves no files and says nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,  # epochs' ends are written all the same
        **kwargs,
    )


def train(
    make: Callable[[], Classifier],
    data: MNISTDataModule,
    epochs: int,
    seed: int,
    device: str,
    lr: float = 0.01,
    callbacks: Sequence[Callback] = (),
) -> ClassifierModule:
    """Train a network by the built-in recipe (AdamW, one cycle) for a fixed number of epochs; none is chosen.

    Args:
        make: makes the network, after the seed is set.
        data: its digits; a copy gets an order of its own.
        epochs: passes over them.
        seed: of weights and order.
        device: "cpu" or "cuda".
        lr: the cycle's peak.
        callbacks: Lightning's.
    """
    seed_everything(seed, verbose=False)
    module = ClassifierModule(make(), optimizer=lambda p: AdamW(p, lr=lr, weight_decay=1e-4))
    trainer = trainer_for(device, max_epochs=epochs, callbacks=list(callbacks), limit_val_batches=0)
    with torch.enable_grad():  # and back to what was, which Lightning alone would not do
        trainer.fit(module, copy.copy(data))
    module.to(device)
    return module


def trained_odenet(study: Study, epochs: int, solver: RungeKutta | None = None) -> ODENet:
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


@dataclass
class TrainedBefore(Study):
    """A study that can take a network trained before.

    Args:
        ckpt_path: a checkpoint of `fit`.
        trusted: a module or package of your own, whose classes the checkpoint may name; they are imported.
    """

    ckpt_path: str | None = None
    trusted: str | None = None

    @property
    def checkpoint(self) -> str | None:
        """The path of the trained network."""
        return self.ckpt_path

    def loaded(self) -> Classifier | None:
        """The checkpoint's network, where one is given."""
        return load_network(self.ckpt_path, self.trusted).to(self.device) if self.ckpt_path else None


@dataclass
class OneNetwork(TrainedBefore):
    """A study that looks into one trained network with a single ODE block.

    Args:
        epochs: to train the post's network for, where no checkpoint is given.
    """

    epochs: int = 6

    @cached_property
    def network(self) -> OneBlock:
        """The checkpoint's, or the post's, trained here.

        Raises:
            UsageError: the checkpoint's network has not one ODE block.
        """
        net = self.loaded() or trained_odenet(self, self.epochs)
        if not isinstance(net, OneBlock):
            raise UsageError(
                f"{self.ckpt_path} holds a {type(net).__name__}; this study looks into networks with one ODE block"
            )
        return net
