"""The networks of Chen et al. 2018 (arXiv:1806.07366, Table 1)."""

from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import Field, TimeConvField, group_count
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
from odenet_lightning.solvers.settings import check_whole

SMALLEST = 6  # of an image's sides: 4, 2 and 1 after the stem's convolutions


class PaperStem(nn.Module):
    """Two strided convolutions: `[B, 1, 28, 28]` -> `[B, C, 6, 6]` (Chen et al. 2018's code)."""

    def __init__(self, channels: int, image_channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, channels, kernel_size=3),
            nn.GroupNorm(group_count(channels), channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=4, stride=2, padding=1),
            nn.GroupNorm(group_count(channels), channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the trunk's input."""
        return self.layers(x)


class PaperHead(nn.Module):
    """fc(mean over pixels of relu(norm(y))): `[B, C, H, W]` -> logits `[B, K]`."""

    def __init__(self, channels: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits; a mean, since CUDA's adaptive pooling has no deterministic backward pass."""
        return self.fc(F.relu(self.norm(y)).mean((2, 3)))


class PaperODENet(OneBlock):
    """The ODE-Net of Chen et al. 2018 (arXiv:1806.07366, Table 1): 208,266 parameters at 64 channels.

    Args:
        channels: C, width of stem, state and head.
        solver: how to solve the ODE, by default Dormand-Prince at the paper's tolerance of 1e-3.
        gradient: how to differentiate the solve, by default `Backprop`.
        field: f(t, y), on `[B, C, 6, 6]` with MNIST's images, by default the paper's `TimeConvField`.
        max_nfe: most evaluations a solve may cost before `SolverError`.
        image_shape: channels, height and width of the images, at least 6 x 6.
        classes: K, at least 2.
    """

    def __init__(
        self,
        channels: int = 64,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        field: Field | None = None,
        max_nfe: int = MAX_NFE,
        image_shape: ImageShape = IMAGE_SHAPE,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        check_whole("channels", channels)
        check_images(image_shape, classes, SMALLEST)
        self.stem = PaperStem(channels, image_shape[0])
        self.block = ODEBlock(
            field=field or TimeConvField(channels),
            solver=solver or Dopri5(rtol=1e-3, atol=1e-3, first_step="warm"),
            gradient=gradient or Backprop(),
            max_nfe=max_nfe,
        )
        self.head = PaperHead(channels, classes)


class PreActivationBlock(nn.Module):
    """y + conv(relu(norm(conv(relu(norm(y)))))), no biases (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(group_count(channels), channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, y: Tensor) -> Tensor:
        """Return the block's output."""
        return y + self.layers(y)


class PaperResNet(Classifier):
    """The paper's discrete networks around the same stem and head.

    576,778 parameters with 6 blocks, 206,858 with one, 132,874 with none (stem and head alone).

    Args:
        channels: C, width of stem, trunk and head.
        blocks: number of residual blocks, 0 or more.
        image_shape: channels, height and width of the images, at least 6 x 6.
        classes: K, at least 2.
    """

    def __init__(
        self,
        channels: int = 64,
        blocks: int = 6,
        image_shape: ImageShape = IMAGE_SHAPE,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        check_whole("channels", channels)
        check_whole("blocks", blocks, 0)
        check_images(image_shape, classes, SMALLEST)
        self.stem = PaperStem(channels, image_shape[0])
        self.blocks = nn.Sequential(*(PreActivationBlock(channels) for _ in range(blocks)))
        self.head = PaperHead(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, K]` of images `[B, C, H, W]`."""
        return self.head(self.blocks(self.stem(x)))
