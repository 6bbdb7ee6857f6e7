"""A trained network as its checkpoint describes it: what its images and its classes are."""

from dataclasses import dataclass
from typing import Any, get_args

import torch

from odenet_lightning.checkpoints import load_checkpoint
from odenet_lightning.checkpoints.read import kept_data
from odenet_lightning.data import Source
from odenet_lightning.data.datasets import DIGITS, RELATIVES
from odenet_lightning.models import IMAGE_SHAPE, Classifier, ImageShape
from odenet_lightning.module import ClassifierModule


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in evaluation mode, and what it was trained on.

    Attributes:
        net: the network, on the CPU.
        image_shape: C, H and W of its images.
        class_names: of its K classes.
        source: the name of the data that it was trained on; None where that is not known or is the user's own.
    """

    net: Classifier
    image_shape: ImageShape
    class_names: tuple[str, ...]
    source: Source | None


def load_trained(path: str, trusted: str | None = None) -> TrainedNetwork:
    """The network of a checkpoint, as `ClassifierModule.load_from_checkpoint` loads it.

    Args:
        path: the file, or the name of a trained network that comes with the package.
        trusted: a module or package of the user's own, whose classes may be imported.

    Raises:
        RefusedCheckpoint: see `ClassifierModule.load_from_checkpoint`.
    """
    checkpoint = load_checkpoint(path)
    module = ClassifierModule.load_from_checkpoint(path, trusted=trusted)
    net, shape = module.net.eval(), image_shape(checkpoint)
    with torch.no_grad():
        classes = net(torch.zeros(1, *shape)).size(1)
    source = kept_data(checkpoint).get("source")
    named = module.class_names or (RELATIVES[source].class_names if source in RELATIVES else DIGITS)
    names = tuple(named) if len(named) == classes else tuple(map(str, range(classes)))
    return TrainedNetwork(net, shape, names, source if source in get_args(Source) else None)


def image_shape(checkpoint: dict[str, Any]) -> ImageShape:
    """The shape that the network's settings name, by default MNIST's."""
    net = checkpoint.get("hyper_parameters", {}).get("net")
    settings = net.get("init_args", {}) if isinstance(net, dict) else {}
    channels, height, width = settings.get("image_shape") or IMAGE_SHAPE
    return channels, height, width
