"""The post's network and its discrete twin."""

from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField, Field, group_count
from odenet_lightning.gradients import Backprop, Gradient
from odenet_lightning.models.base import (
    CLASSES,
    IMAGE_SHAPE,
    Classifier,
    ImageShape,
    OneBlock,
    check_images,
)
from odenet_lightning.solvers import MAX_NFE, Dopri5, Solver
from odenet_lightning.solvers.evaluation import refuse_other_shapes
from odenet_lightning.solvers.settings import check_whole

SMALLEST = 4  # of an image's sides: 2 after the stem's convolution, which has no padding, and 1 after the head's pool


class Stem(nn.Module):
    """relu(norm(conv(x))), a 3 x 3 convolution without padding: `[B, 1, 28, 28]` -> `[B, C, 26, 26]`.

    `augment_dim` channels of zeros are appended.
    """

    def __init__(self, channels: int, image_channels: int = 1, augment_dim: int = 0) -> None:
        super().__init__()
        self.augment_dim = augment_dim
        self.conv = nn.Conv2d(image_channels, channels, kernel_size=3)
        self.norm = nn.GroupNorm(group_count(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the trunk's input."""
        y = F.relu(self.norm(self.conv(x)))
        return F.pad(y, (0, 0, 0, 0, 0, self.augment_dim)) if self.augment_dim else y


class Head(nn.Module):
    """fc(average pool 2 x 2): `[B, C, 26, 26]` -> logits `[B, K]`; of an odd side the last row is left out."""

    def __init__(self, channels: int, image_shape: ImageShape = IMAGE_SHAPE, classes: int = CLASSES) -> None:
        super().__init__()
        _, height, width = image_shape
        self.fc = nn.Linear(channels * ((height - 2) // 2) * ((width - 2) // 2), classes)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits."""
        # F.avg_pool2d's backward pass takes three times as long on the CPU
        rows = y[:, :, :-1:2] + y[:, :, 1::2]
        return self.fc(((rows[..., :-1:2] + rows[..., 1::2]) / 4).flatten(1))


class ODENet(OneBlock):
    """The post's network: stem, one ODE block, head; 10,564 parameters at 6 channels.

    Args:
        channels: width of the stem, at least 1.
        solver: how to solve the ODE; by default Dormand-Prince at the post's tolerance of 0.1,
            with the first step carried from batch to batch.
        gradient: how to differentiate the solve, by default `Backprop`.
        field: f(t, y) on `[B, C, H - 2, W - 2]`, by default the post's `ConvField`; C = channels + augment_dim.
        max_nfe: most evaluations a solve may cost before `SolverError`.
        image_shape: channels, height and width of the images, at least 4 x 4.
        classes: K, at least 2.
        augment_dim: channels of zeros behind the stem's, 0 or more (Dupont et al. 2019, arXiv:1904.01681); with a field
            of second order, velocities at rest.
    """

    def __init__(
        self,
        channels: int = 6,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        field: Field | None = None,
        max_nfe: int = MAX_NFE,
        image_shape: ImageShape = IMAGE_SHAPE,
        classes: int = CLASSES,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        check_whole("channels", channels)
        check_whole("augment_dim", augment_dim, 0)
        check_images(image_shape, classes, SMALLEST)
        self.stem = Stem(channels, image_shape[0], augment_dim)
        channels += augment_dim
        self.block = ODEBlock(
            field=field or ConvField(channels),
            solver=solver or Dopri5(rtol=0.1, atol=0.1, first_step="warm"),
            gradient=gradient or Backprop(),
            max_nfe=max_nfe,
        )
        self.head = Head(channels, image_shape, classes)


class ResidualBlock(nn.Module):
    """y + f(y): one step of Euler's method, of size 1, with weights of its own (He et al. 2016)."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, y: Tensor) -> Tensor:
        """Return y + f(y)."""
        return y + refuse_other_shapes(self.field, self.field(y.new_zeros(()), y), y)


class ResNet(Classifier):
    """The discrete twin: the post's stem and head around N residual blocks, each with its own weights.

    Args:
        channels: C, width of stem and trunk, at least 1.
        blocks: N, number of residual blocks, 0 or more; 0 leaves stem and head alone.
        image_shape: channels, height and width of the images, at least 4 x 4.
        classes: K, at least 2.
    """

    def __init__(
        self,
        channels: int = 6,
        blocks: int = 6,
        image_shape: ImageShape = IMAGE_SHAPE,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        check_whole("channels", channels)
        check_whole("blocks", blocks, 0)
        check_images(image_shape, classes, SMALLEST)
        self.stem = Stem(channels, image_shape[0])
        self.blocks = nn.Sequential(*(ResidualBlock(ConvField(channels)) for _ in range(blocks)))
        self.head = Head(channels, image_shape, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, K]` of images `[B, C, H, W]`."""
        return self.head(self.blocks(self.stem(x)))
