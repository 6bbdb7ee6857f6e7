"""What a field keeps from one evaluation for the next ones: refused only where a gradient would be lost."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.fields import Field, Galerkin
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.solvers import Dopri5, FieldError, Midpoint
from tests.gradient_problems import grads_of, made, start

each_that_redoes = pytest.mark.parametrize("gradient", [Checkpoint(), Checkpoint(slots=2), Adjoint()], ids=repr)


class Keeping(Field):
    """tanh(conv(y)), with something kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.kept: Any = {}
        self.recent: deque[Tensor] = deque(maxlen=1)
        self.register_buffer("late", None)

    def slope(self, y: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh(F.conv2d(y, weight, self.conv.bias, padding=1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.slope(y, self.conv.weight)


class GridByShape(Keeping):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        key = (*y.shape[-2:], y.device, y.dtype)
        if key not in self.kept:
            self.kept[key] = torch.linspace(-1.0, 1.0, y.shape[-1])
        return super().forward(t, y) + self.kept[key]


class Norms(Keeping):
    """Statistics that nothing reads, with their graphs."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope = super().forward(t, y)
        self.kept["mean"], self.kept["norm"] = slope.detach().mean(), slope.norm()
        self.kept.setdefault("all", []).append(slope.norm())
        return slope


class Largest(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope = super().forward(t, y)
        self.kept = torch.maximum(self.kept, slope.detach().abs().max())
        return slope


class LateMask(Keeping):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.mask = torch.ones_like(self.conv.weight).tril()
        return self.slope(y, self.conv.weight * self.mask)


@pytest.mark.parametrize("make", [GridByShape, Norms, Largest, LateMask])
@each_that_redoes
def test_what_carries_no_gradient_may_be_kept(gradient: Gradient, make: Callable[[], nn.Module]) -> None:
    truth, found = (grads_of(made(make, Midpoint(num_steps=8), g), start()) for g in (Backprop(), gradient))
    for one, other in zip(truth, found, strict=True):
        tolerance = 0.1 if isinstance(gradient, Adjoint) else 1e-5
        assert (other - one).norm() < tolerance * one.norm()  # pyright: ignore


@pytest.mark.parametrize("gradient", [Checkpoint(), Adjoint()], ids=repr)
def test_what_is_kept_within_vmap_may_be_kept(gradient: Gradient) -> None:
    """`Galerkin` evaluates its field so where each image has its own time."""
    solver = Dopri5(1e-5, 1e-5, per_sample=True)
    truth, found = (grads_of(made(lambda: Galerkin(Norms()), solver, g), start()) for g in (Backprop(), gradient))
    for one, other in zip(truth, found, strict=True):
        tolerance = 0.1 if isinstance(gradient, Adjoint) else 1e-5
        assert (other - one).norm() < tolerance * one.norm()  # pyright: ignore


class ByTime(Keeping):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if float(t) not in self.kept:
            self.kept[float(t)] = self.conv.weight * (1 + t)
        return self.slope(y, self.kept[float(t)])


class Nested(Keeping):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        weights = self.kept.setdefault(y.dtype, [])
        if not weights:
            weights.append(self.conv.weight * 2)
        return self.slope(y, weights[0])


class Recent(Keeping):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if not self.recent:
            self.recent.append(self.conv.weight * 2)
        return self.slope(y, self.recent[0])


class LateBuffer(Keeping):
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.late is None:
            self.late = self.conv.weight * 2
        return self.slope(y, self.late)


class Beginning(Keeping):
    """Depends on y(0), too."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if float(t) == 0.0:
            self.kept = y * 1.0
        return super().forward(t, y - self.kept)


@pytest.mark.parametrize(
    ("make", "name"),
    [(ByTime, "kept"), (Nested, "kept"), (Recent, "recent"), (LateBuffer, "late"), (Beginning, "kept")],
)
@each_that_redoes
def test_what_carries_a_gradient_is_refused_wherever_it_is_kept(
    gradient: Gradient, make: Callable[[], nn.Module], name: str
) -> None:
    block = made(make, Midpoint(num_steps=2), gradient)
    with pytest.raises(FieldError, match=f"{make.__name__} keeps {name} from one evaluation"):  # pyright: ignore
        grads_of(block, start())


@each_that_redoes
def test_the_look_at_what_is_kept_leaves_nothing_behind(gradient: Gradient) -> None:
    class Counted(Norms):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.count += 1
            return super().forward(t, y)

    block = made(Counted, Midpoint(num_steps=2), gradient)
    grads_of(block, start())
    assert block.field.count == 4, "the forward pass's"
