"""The base classes of all networks: images in, logits out; stem, trunk and head."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from odenet_lightning.block import ODEBlock, ode_blocks
from odenet_lightning.solvers.settings import check_whole, is_whole

ImageShape = tuple[int, int, int]  # channels, height, width

CLASSES = 10
IMAGE_SHAPE: ImageShape = (1, 28, 28)  # MNIST's


class Classifier(nn.Module, ABC):
    """A network from images `[B, C, H, W]` in [-1, 1] to logits `[B, K]`.

    The built-in networks take `image_shape`, (C, H, W), and `classes`, K; by default MNIST's. On the command line both
    come from the data, for any network whose constructor has these two arguments.
    Subclass it for a network of your own and name the class in a config (`model.net`).
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""

    @property
    def num_params(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def ode_blocks(self) -> list[ODEBlock]:
        """The network's ODE blocks, in order."""
        return ode_blocks(self)


class OneBlock(Classifier):
    """head(block(stem(x))): the base class of networks with a single ODE block."""

    stem: nn.Module
    block: ODEBlock
    head: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, K]` of images `[B, C, H, W]`."""
        return self.head(self.block(self.stem(x)))


class Composed(Classifier):
    """head(trunk(stem(x))) of three parts, each of which a config can choose.

    Args:
        stem: images `[B, C, H, W]` -> the trunk's input.
        trunk: any module between the two, an `ODEBlock` or not; None for stem and head alone.
        head: the trunk's output -> logits `[B, K]`.
    """

    def __init__(self, stem: nn.Module, head: nn.Module, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.trunk, self.head = stem, trunk or nn.Identity(), head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, K]` of images `[B, C, H, W]`."""
        return self.head(self.trunk(self.stem(x)))


def check_images(image_shape: ImageShape, classes: int, smallest: int) -> None:
    """Refuse images without channels or smaller than a network's layers need, and less than two classes."""
    channels, height, width = image_shape
    if not all(map(is_whole, image_shape)) or channels < 1 or min(height, width) < smallest:
        shape = " x ".join(map(str, image_shape))
        raise ValueError(f"image_shape must be whole numbers of at least 1 x {smallest} x {smallest}, not {shape}")
    check_whole("classes", classes, 2)


def refuse_no_logits(net: nn.Module, output: Any, images: Tensor) -> Tensor:
    """What a network returned for a batch of images, where that can be logits `[B, K]`.

    Raises:
        ValueError: it is no matrix of real numbers with a row for each image.
    """
    if isinstance(output, Tensor) and output.dim() == 2 and len(output) == len(images) and output.is_floating_point():
        return output
    kind = f"{list(output.shape)}, {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"{type(net).__name__} returned {kind}, needs logits: [{len(images)}, K] real numbers for K classes"
    )
