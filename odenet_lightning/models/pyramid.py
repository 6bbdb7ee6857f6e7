"""Two ODE blocks, at half and at a quarter of the image's size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import TimeBiasField
from odenet_lightning.gradients import Backprop, Gradient
from odenet_lightning.models.base import CLASSES, IMAGE_SHAPE, Classifier, ImageShape, check_images
from odenet_lightning.solvers import MAX_NFE, Midpoint, Solver
from odenet_lightning.solvers.settings import check_whole


class Transition(nn.Module):
    """Half the size, other channels: `[B, C, H, W]` -> `[B, D, H / 2, W / 2]`."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.MaxPool2d(2),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, kernel_size=1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, y: Tensor) -> Tensor:
        """Return the next block's input."""
        return self.layers(y)


class PyramidStem(nn.Module):
    """A convolution and a transition: `[B, 1, 28, 28]` -> `[B, C, 14, 14]`."""

    def __init__(self, hidden: int, channels: int, image_channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_channels, hidden, kernel_size=3, padding=1)
        self.transition = Transition(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the first block's input."""
        return self.transition(self.conv(x))


class PositionHead(nn.Module):
    """fc of a weighted sum over pixels, with weights for each channel: `[B, C, 7, 7]` -> logits `[B, K]`.

    An average forgets where a stroke was; these weights start as an average and learn to tell.
    """

    def __init__(self, channels: int, image_shape: ImageShape = IMAGE_SHAPE, classes: int = CLASSES) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        size = (image_shape[1] // 4, image_shape[2] // 4)
        self.pool = nn.Conv2d(channels, channels, kernel_size=size, groups=channels, bias=False)
        nn.init.constant_(self.pool.weight, 1 / (size[0] * size[1]))
        self.fc = nn.Linear(channels, classes)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(self.pool(F.silu(self.norm(y))).flatten(1))


class PyramidODENet(Classifier):
    """Two ODE blocks, at 14 x 14 and 7 x 7: 10,074 parameters, the most accurate network here of that size.

    Most parameters are in the second field, which the solver uses again at every evaluation. Batch
    norms stand between the blocks only: in a field they would mix the samples of a batch into the
    dynamics, and their running statistics would depend on the solver.

    Args:
        hidden: width of the stem's first convolution.
        channels: widths of the two states.
        solver: how to solve both ODEs, by default one midpoint step.
        gradient: how to differentiate the solves, by default `Backprop`.
        max_nfe: most evaluations a solve may cost before `SolverError`.
        image_shape: channels, height and width of the images, at least 4 x 4.
        classes: K, at least 2.
    """

    def __init__(
        self,
        hidden: int = 12,
        channels: tuple[int, int] = (16, 24),
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        max_nfe: int = MAX_NFE,
        image_shape: ImageShape = IMAGE_SHAPE,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        first, second = channels
        for name, value in (("hidden", hidden), ("channels", first), ("channels", second)):
            check_whole(name, value)
        check_images(image_shape, classes, 4)
        solver, gradient = solver or Midpoint(num_steps=1), gradient or Backprop()
        self.stem = PyramidStem(hidden, first, image_shape[0])
        self.first = ODEBlock(TimeBiasField(first), solver, gradient, max_nfe)
        self.transition = Transition(first, second)
        self.second = ODEBlock(TimeBiasField(second), solver, gradient, max_nfe)
        self.head = PositionHead(second, image_shape, classes)
        # with channels last in memory, these convolutions and norms take half the time on a CPU
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, K]` of images `[B, C, H, W]`."""
        return self.head(self.second(self.transition(self.first(self.stem(x)))))
