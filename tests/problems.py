"""Initial value problems, most with their own exact solution, and the tools to count what a solve calls."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField, Field
from odenet_lightning.gradients import Backprop, Gradient
from odenet_lightning.models import Composed
from odenet_lightning.solvers import Solver

ANGLE = 1.2  # by which the rotation turns


@dataclass(frozen=True)
class ExactProblem:
    """dy/dt = field(t, y), y(t0) = y0 over [t0, t1], with the closed form y(t) = exact(t); all float64."""

    field: nn.Module
    y0: Tensor
    t0: float
    t1: float
    exact: Callable[[float], Tensor]


class Decay(nn.Module):
    """dy/dt = -rate y."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


class Linear(nn.Module):
    """dy/dt = A y, for states `[..., n]`."""

    def __init__(self, matrix: list[list[float]]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(matrix, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.matrix.T


class Swing(nn.Module):
    """dy/dt = strength y cos t: the one problem here whose field depends on t."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.strength * y * torch.cos(t)


class Logistic(nn.Module):
    """dy/dt = rate y (1 - y / capacity)."""

    def __init__(self, rate: float, capacity: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))
        self.capacity = nn.Parameter(torch.tensor(capacity, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * y * (1 - y / self.capacity)


def decay(rate: float = 1.3) -> ExactProblem:
    """Exponential decay, y = exp(-rate t) y0, on a state of three axes."""
    y0 = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(2, 3, 2)
    return ExactProblem(Decay(rate), y0, 0.0, 2.0, lambda t: math.exp(-rate * t) * y0)


def oscillator(damping: float = 0.0) -> ExactProblem:
    """An oscillator, x'' + damping x' + 4 x = 0, as a linear system of (x, x') for two starts; y = exp(A t) y0."""
    matrix = [[0.0, 1.0], [-4.0, -damping]]
    a = torch.tensor(matrix, dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
    return ExactProblem(Linear(matrix), y0, 0.0, 1.5, lambda t: y0 @ torch.linalg.matrix_exp(a * t).T)


def damped() -> ExactProblem:
    """The oscillator with friction."""
    return oscillator(damping=0.7)


def swing(strength: float = 2.0) -> ExactProblem:
    """y = y0 exp(strength (sin t - sin t0)), not starting at 0, where a wrong time would not show as well."""
    y0, t0 = torch.tensor([1.0, -0.4], dtype=torch.float64), 0.3
    return ExactProblem(Swing(strength), y0, t0, 3.0, lambda t: y0 * math.exp(strength * (math.sin(t) - math.sin(t0))))


def logistic(rate: float = 3.0, capacity: float = 1.5) -> ExactProblem:
    """y = capacity / (1 + (capacity / y0 - 1) exp(-rate t)), on a state without axes."""
    y0 = torch.tensor(0.1, dtype=torch.float64)
    return ExactProblem(
        Logistic(rate, capacity), y0, 0.0, 1.0, lambda t: capacity / (1 + (capacity / y0 - 1) * math.exp(-rate * t))
    )


PROBLEMS: dict[str, Callable[[], ExactProblem]] = {
    "decay": decay,
    "oscillator": oscillator,
    "damped": damped,
    "swing": swing,
    "logistic": logistic,
}


def conv_problem(batch: int = 4, channels: int = 6, size: int = 26, seed: int = 0) -> tuple[ConvField, Tensor]:
    """The post's field with a state such as its stem makes, float32; no closed form."""
    torch.manual_seed(seed)
    field = ConvField(channels)
    return field, torch.randn(batch, channels, size, size).relu()


@dataclass
class Calls:
    """How often a module was called."""

    count: int = 0


@contextmanager
def count_calls(module: nn.Module) -> Iterator[Calls]:
    """Count a module's calls from outside, whoever makes them."""
    calls = Calls()

    def count(module: nn.Module, args: object) -> None:
        calls.count += 1

    handle = module.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest deviation in units of the truth's largest entry."""
    return float((value.detach() - truth.detach()).abs().max() / truth.detach().abs().max())


class Exploding(Field):
    """dy/dt = y^2 * scale: blows up within [0, 1] from y = 1 / scale on."""

    def __init__(self, scale: float = 5.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.scale * y * y


class Rotation(nn.Module):
    """dy/dt = angle (-y_2, y_1), and a decay of y_2's own: y(1) is y(0) turned by the angle, where that is 0."""

    def __init__(self, decay: float = 0.0) -> None:
        super().__init__()
        self.angle, self.decay = nn.Parameter(torch.tensor(ANGLE)), decay

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        first, second = y.unbind(1)
        return torch.stack([-self.angle * second - self.decay * first, self.angle * first - self.decay * second], 1)


def network(solver: Solver, gradient: Gradient | None = None, decay: float = 0.0) -> Composed:
    """Points `[B, 2]`, turned, and which of the two coordinates is larger."""
    return Composed(nn.Identity(), nn.Identity(), ODEBlock(Rotation(decay), solver, gradient or Backprop()))


def points(count: int) -> Tensor:
    """On a circle of radius 3."""
    angles = torch.arange(count) * (2 * math.pi / count)
    return 3 * torch.stack([angles.cos(), angles.sin()], 1)
