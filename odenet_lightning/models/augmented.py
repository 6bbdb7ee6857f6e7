"""The augmented Neural ODE of Dupont et al. 2019 (arXiv:1904.01681)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import BottleneckField, Field
from odenet_lightning.gradients import Backprop, Gradient
from odenet_lightning.models.base import CLASSES, IMAGE_SHAPE, ImageShape, OneBlock, check_images
from odenet_lightning.solvers import MAX_NFE, Dopri5, Solver
from odenet_lightning.solvers.settings import check_whole


class ZeroChannels(nn.Module):
    """Appends channels of zeros: `[B, C, H, W]` -> `[B, C + dim, H, W]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the augmented state."""
        return F.pad(x, (0, 0, 0, 0, 0, self.dim))


class FlatHead(nn.Module):
    """fc(y) over all pixels of all channels: `[B, C, H, W]` -> logits `[B, K]`."""

    def __init__(self, channels: int, image_shape: ImageShape = IMAGE_SHAPE, classes: int = CLASSES) -> None:
        super().__init__()
        self.fc = nn.Linear(channels * image_shape[1] * image_shape[2], classes)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(y.flatten(1))


class AugmentedODENet(OneBlock):
    """The augmented Neural ODE of Dupont et al. 2019 (arXiv:1904.01681): 84,816 parameters.

    No convolutional stem: the image itself, with channels of zeros beside it, is the state at
    t = 0. The zeros give trajectories the room to pass each other, which they cannot do in the
    image's own space; `augment_dim=0` shows what is lost.

    Args:
        augment_dim: channels of zeros, 0 or more.
        hidden: width of the field between its convolutions.
        solver: how to solve the ODE, by default Dormand-Prince at 1e-3, the authors' setting.
        gradient: how to differentiate the solve, by default `Backprop`.
        field: f(t, y) on `[B, image channels + augment_dim, H, W]`, by default `BottleneckField`.
        max_nfe: most evaluations a solve may cost before `SolverError`.
        image_shape: channels, height and width of the images, at least 1 x 1.
        classes: K, at least 2.
    """

    def __init__(
        self,
        augment_dim: int = 5,
        hidden: int = 64,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        field: Field | None = None,
        max_nfe: int = MAX_NFE,
        image_shape: ImageShape = IMAGE_SHAPE,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        check_whole("augment_dim", augment_dim, 0)
        check_whole("hidden", hidden)
        check_images(image_shape, classes, 1)
        channels = image_shape[0] + augment_dim
        self.stem = ZeroChannels(augment_dim)
        self.block = ODEBlock(
            field=field or BottleneckField(channels, hidden),
            solver=solver or Dopri5(rtol=1e-3, atol=1e-3, first_step="warm"),
            gradient=gradient or Backprop(),
            max_nfe=max_nfe,
        )
        self.head = FlatHead(channels, image_shape, classes)
        # a third less time on a CPU
        self.to(memory_format=torch.channels_last)
