"""Networks to study: from a checkpoint, or trained here."""

import re
from dataclasses import dataclass
from functools import cached_property

from jsonargparse import ArgumentParser

from odenet_lightning.cli.argv import texts
from odenet_lightning.cli.errors import UsageError
from odenet_lightning.cli.trust import foreign_texts, load_checkpoint
from odenet_lightning.models import Classifier, OneBlock
from odenet_lightning.studies.study import Study
from odenet_lightning.studies.training import trained_odenet


def load_network(path: str, trusted: str | None = None) -> Classifier:
    """The network of a checkpoint that a fit on the command line has written, in evaluation mode.

    Args:
        path: the checkpoint.
        trusted: a module or package of the user's own, whose classes may be imported.

    Raises:
        UsageError: no such checkpoint, one that does not say what its network is, or one that names classes of modules
            that are not trusted.
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
    return net.eval()


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
        """The checkpoint's network, when one is given.

        Raises:
            UsageError: it has no ODE block.
        """
        if not self.ckpt_path:
            return None
        net = load_network(self.ckpt_path, self.trusted)
        if not net.ode_blocks:
            raise UsageError(f"{self.ckpt_path} holds a {type(net).__name__}, which has no ODE block to study")
        return net.to(self.device)


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
