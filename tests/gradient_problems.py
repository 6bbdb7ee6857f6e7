"""Fields of every kind, their gradients, and what a solve keeps for them."""

from collections.abc import Callable

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from odenet_lightning.block import ODEBlock
from odenet_lightning.gradients import Gradient
from odenet_lightning.solvers import (
    Problem,
    Solution,
    Solver,
)
from tests.problems import relative_error


class Mixer(nn.Module):
    """dy/dt = tanh(W y + b t), or b instead of b t: a smooth nonlinear field with several parameters."""

    def __init__(self, width: int = 3, timed: bool = True) -> None:
        super().__init__()
        self.timed = timed
        self.weight = nn.Parameter(torch.randn(width, width, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(width, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight.T + (self.bias * t if self.timed else self.bias))


def mixer_problem(timed: bool = True) -> tuple[Mixer, Tensor]:
    torch.manual_seed(0)
    return Mixer(timed=timed), torch.randn(2, 3, dtype=torch.float64)


def loss_of(y: Tensor) -> Tensor:
    """A loss that weighs every entry of the state differently."""
    return (y * torch.linspace(-1.0, 2.0, y.numel(), dtype=y.dtype).reshape(y.shape)).square().mean()


def gradients_of(
    gradient: Gradient, solver: Solver, field: nn.Module, y0: Tensor, t0: float = 0.0, t1: float = 1.0
) -> tuple[Solution, list[Tensor]]:
    """The solve, and its loss's gradients with respect to the start and to each parameter."""
    start = y0.clone().requires_grad_()
    field.zero_grad()
    integral = gradient.solve(solver, Problem(field, start, t0, t1))
    loss_of(integral.y).backward()
    grads = [start.grad, *(p.grad for p in field.parameters())]
    assert all(grad is not None for grad in grads)
    return integral, [grad for grad in grads if grad is not None]


def largest_difference(grads: list[Tensor], truth: list[Tensor]) -> float:
    return max(relative_error(grad, true) for grad, true in zip(grads, truth, strict=True))


def saved_bytes(solve: Callable[[], Solution], field: nn.Module) -> tuple[int, Solution]:
    """Bytes that a solve keeps for its backward pass, each storage once, the parameters left out."""
    kept: dict[int, Tensor] = {}
    params = {p.untyped_storage().data_ptr() for p in field.parameters()}

    def pack(x: Tensor) -> Tensor:
        # the tensor is kept, else its memory would be given to another and counted once for both
        kept.setdefault(x.untyped_storage().data_ptr(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        integral = solve()
    sizes = [x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in params]
    return sum(sizes), integral


SHAPE = (4, 6, 8, 8)


class Noisy(nn.Module):
    """tanh(conv(y)) with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return F.dropout(torch.tanh(self.conv(y)), 0.5, self.training)


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()


def grads_of(block: ODEBlock, y0: Tensor) -> list[Tensor | None]:
    block.zero_grad()
    y0.grad = None
    block(y0).square().mean().backward()
    return [y0.grad, *(p.grad for p in block.parameters())]


def made(make: Callable[[], nn.Module], solver: Solver, gradient: Gradient) -> ODEBlock:
    torch.manual_seed(0)
    return ODEBlock(make(), solver, gradient)


# --- tensors that the field does not own


class Hidden(nn.Module):
    """Reaches a convolution through a list, which registers nothing."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.layers = [nn.Conv2d(channels, channels, 3, padding=1)]

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.layers[0](y))


# --- buffers


class Normed(nn.Module):
    """Batch norm in a field: no vector field, but it must be counted right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(y)))


class SpectrallyNormed(nn.Module):
    """Spectral norm, whose buffers each evaluation in training improves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv2d(6, 6, 3, padding=1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.conv(y))


# --- in place


class Rectified(nn.Module):
    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self.conv, self.in_place = nn.Conv2d(6, 6, 3, padding=1), in_place

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.conv(F.relu(y, inplace=self.in_place))


# --- weights that are not computed within an evaluation


class Parametrized(nn.Module):
    """A field whose weight is computed from a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(6, 6, 3, padding=1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.conv(y))


class Late(nn.Module):
    """A field that reaches a layer which it does not own, at early times only."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Conv2d(6, 6, 3, padding=1)
        self.others = [nn.Conv2d(6, 6, 3, padding=1)]

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.own(y) + (self.others[0](y) if t < 0.3 else 0.0))


class Generated(nn.Module):
    """A field whose weight another network has computed before the solve."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.ones(1))

    def generate(self) -> None:
        self.weight = torch.tanh(self.seed) * torch.full((6, 6, 3, 3), 0.1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return F.conv2d(y, self.weight, padding=1)
