"""Image classifiers: stem -> trunk -> head. The networks differ in the trunk only."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock, ode_blocks
from odenet_lightning.fields import BottleneckField, ConvField, Field, TimeBiasField, TimeConvField, group_count
from odenet_lightning.gradients import Backprop, Gradient
from odenet_lightning.solvers import MAX_NFE, Dopri5, Midpoint, Solver

CLASSES = 10
IMAGE_SIZE = 28
TRUNK_SIZE = IMAGE_SIZE - 2  # the stem's convolution has no padding


class Stem(nn.Module):
    """relu(norm(conv(x))), a 3 x 3 convolution without padding: `[B, 1, 28, 28]` -> `[B, C, 26, 26]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel_size=3)
        self.norm = nn.GroupNorm(group_count(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the trunk's input."""
        return F.relu(self.norm(self.conv(x)))


class Head(nn.Module):
    """fc(average pool 2 x 2): `[B, C, 26, 26]` -> logits `[B, 10]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels * (TRUNK_SIZE // 2) ** 2, CLASSES)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits."""
        # F.avg_pool2d's way back takes three times as long on the CPU
        rows = y[:, :, ::2] + y[:, :, 1::2]
        return self.fc(((rows[..., ::2] + rows[..., 1::2]) / 4).flatten(1))


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


class ODENet(OneBlock):
    """The post's network: stem, one ODE block, head; 10,564 parameters at 6 channels.

    Args:
        channels: C, width of the stem and of the state, at least 1.
        solver: how to solve the ODE; by default Dormand-Prince at the post's tolerance of 0.1,
            with the first step carried from batch to batch.
        gradient: how to differentiate the solve, by default `Backprop`.
        field: f(t, y) on `[B, C, 26, 26]`, by default the post's `ConvField`.
        max_nfe: most evaluations a solve may cost before `SolverError`.
    """

    def __init__(
        self,
        channels: int = 6,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        field: Field | None = None,
        max_nfe: int = MAX_NFE,
    ) -> None:
        super().__init__()
        check_positive("channels", channels)
        self.stem = Stem(channels)
        self.block = ODEBlock(
            field=field or ConvField(channels),
            solver=solver or Dopri5(rtol=0.1, atol=0.1, first_step="warm"),
            gradient=gradient or Backprop(),
            max_nfe=max_nfe,
        )
        self.head = Head(channels)


class ResidualBlock(nn.Module):
    """y + f(y): one step of Euler's method, of size 1, with weights of its own (He et al. 2016)."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, y: Tensor) -> Tensor:
        """Return y + f(y)."""
        return y + self.field(y.new_zeros(()), y)


class ResNet(Classifier):
    """The discrete twin: the post's stem and head around N residual blocks, each with its own weights.

    Args:
        channels: C, width of stem and trunk, at least 1.
        blocks: N, number of residual blocks, 0 or more; 0 leaves stem and head alone.
    """

    def __init__(self, channels: int = 6, blocks: int = 6) -> None:
        super().__init__()
        check_positive("channels", channels)
        if blocks < 0:
            raise ValueError(f"blocks must not be negative, not {blocks!r}")
        self.stem = Stem(channels)
        self.blocks = nn.Sequential(*(ResidualBlock(ConvField(channels)) for _ in range(blocks)))
        self.head = Head(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, 10]` of images `[B, 1, 28, 28]`."""
        return self.head(self.blocks(self.stem(x)))


class PaperStem(nn.Module):
    """Two strided convolutions: `[B, 1, 28, 28]` -> `[B, C, 6, 6]` (Chen et al. 2018's code)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3),
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
    """fc(mean over pixels of relu(norm(y))): `[B, C, H, W]` -> logits `[B, 10]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits; a mean, since CUDA's adaptive pooling is not deterministic on the way back."""
        return self.fc(F.relu(self.norm(y)).mean((2, 3)))


class PaperODENet(OneBlock):
    """The ODE-Net of Chen et al. 2018 (arXiv:1806.07366, Table 1): 208,266 parameters at 64 channels.

    Args:
        channels: C, width of stem, state and head.
        solver: how to solve the ODE, by default Dormand-Prince at the paper's tolerance of 1e-3.
        gradient: how to differentiate the solve, by default `Backprop`.
        field: f(t, y) on `[B, C, 6, 6]`, by default the paper's `TimeConvField`.
        max_nfe: most evaluations a solve may cost before `SolverError`.
    """

    def __init__(
        self,
        channels: int = 64,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        field: Field | None = None,
        max_nfe: int = MAX_NFE,
    ) -> None:
        super().__init__()
        check_positive("channels", channels)
        self.stem = PaperStem(channels)
        self.block = ODEBlock(
            field=field or TimeConvField(channels),
            solver=solver or Dopri5(rtol=1e-3, atol=1e-3, first_step="warm"),
            gradient=gradient or Backprop(),
            max_nfe=max_nfe,
        )
        self.head = PaperHead(channels)


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
    """

    def __init__(self, channels: int = 64, blocks: int = 6) -> None:
        super().__init__()
        check_positive("channels", channels)
        if blocks < 0:
            raise ValueError(f"blocks must not be negative, not {blocks!r}")
        self.stem = PaperStem(channels)
        self.blocks = nn.Sequential(*(PreActivationBlock(channels) for _ in range(blocks)))
        self.head = PaperHead(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, 10]` of images `[B, 1, 28, 28]`."""
        return self.head(self.blocks(self.stem(x)))


class Augment(nn.Module):
    """Appends channels of zeros: `[B, C, H, W]` -> `[B, C + dim, H, W]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the augmented state."""
        return F.pad(x, (0, 0, 0, 0, 0, self.dim))


class FlatHead(nn.Module):
    """fc(y) over all pixels of all channels: `[B, C, 28, 28]` -> logits `[B, 10]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels * IMAGE_SIZE**2, CLASSES)

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
        field: f(t, y) on `[B, 1 + augment_dim, 28, 28]`, by default `BottleneckField`.
        max_nfe: most evaluations a solve may cost before `SolverError`.
    """

    def __init__(
        self,
        augment_dim: int = 5,
        hidden: int = 64,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        field: Field | None = None,
        max_nfe: int = MAX_NFE,
    ) -> None:
        super().__init__()
        if augment_dim < 0:
            raise ValueError(f"augment_dim must not be negative, not {augment_dim!r}")
        check_positive("hidden", hidden)
        channels = 1 + augment_dim
        self.stem = Augment(augment_dim)
        self.block = ODEBlock(
            field=field or BottleneckField(channels, hidden),
            solver=solver or Dopri5(rtol=1e-3, atol=1e-3, first_step="warm"),
            gradient=gradient or Backprop(),
            max_nfe=max_nfe,
        )
        self.head = FlatHead(channels)
        # a third less time on a CPU
        self.to(memory_format=torch.channels_last)


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

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, hidden, kernel_size=3, padding=1)
        self.transition = Transition(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the first block's input."""
        return self.transition(self.conv(x))


class PositionHead(nn.Module):
    """fc of a weighted sum over pixels, with weights for each channel: `[B, C, 7, 7]` -> logits `[B, 10]`.

    An average forgets where a stroke was; these weights start as an average and learn to tell.
    """

    def __init__(self, channels: int, size: int = IMAGE_SIZE // 4) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.Conv2d(channels, channels, kernel_size=size, groups=channels, bias=False)
        nn.init.constant_(self.pool.weight, 1 / size**2)
        self.fc = nn.Linear(channels, CLASSES)

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
    """

    def __init__(
        self,
        hidden: int = 12,
        channels: tuple[int, int] = (16, 24),
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        max_nfe: int = MAX_NFE,
    ) -> None:
        super().__init__()
        first, second = channels
        for name, value in (("hidden", hidden), ("channels", first), ("channels", second)):
            check_positive(name, value)
        solver, gradient = solver or Midpoint(num_steps=1), gradient or Backprop()
        self.stem = PyramidStem(hidden, first)
        self.first = ODEBlock(TimeBiasField(first), solver, gradient, max_nfe)
        self.transition = Transition(first, second)
        self.second = ODEBlock(TimeBiasField(second), solver, gradient, max_nfe)
        self.head = PositionHead(second)
        # with channels last in memory, these convolutions and norms take half the time on a CPU
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `[B, 10]` of images `[B, 1, 28, 28]`."""
        return self.head(self.second(self.transition(self.first(self.stem(x)))))


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
