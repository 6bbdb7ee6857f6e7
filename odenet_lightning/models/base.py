"""What all networks share: images in, logits out; stem, trunk and head."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from odenet_lightning.block import ODEBlock, ode_blocks

CLASSES = 10
IMAGE_SIZE = 28


class Classifier(nn.Module, ABC):
    """A network from images `[B, 1, 28, 28]` in [-1, 1] to logits `[B, 10]`.

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
    """head(block(stem(x))): what the networks with a single ODE block share."""

    stem: nn.Module
    block: ODEBlock
    head: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, 10]` of images `[B, 1, 28, 28]`."""
        return self.head(self.block(self.stem(x)))


class Composed(Classifier):
    """head(trunk(stem(x))) of parts named one by one, so that a config can put in its own.

    Args:
        stem: `[B, 1, 28, 28]` -> the trunk's input.
        trunk: any module between the two, an `ODEBlock` or not; None for stem and head alone.
        head: the trunk's output -> logits `[B, 10]`.
    """

    def __init__(self, stem: nn.Module, head: nn.Module, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.trunk, self.head = stem, trunk or nn.Identity(), head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, 10]` of images `[B, 1, 28, 28]`."""
        return self.head(self.trunk(self.stem(x)))


def check_positive(name: str, value: int) -> None:
    """Refuse a size that is no positive whole number."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
