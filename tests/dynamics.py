"""Dynamics of second order and weights that are functions of t, and networks of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odenet_lightning import ODENet
from odenet_lightning.fields import ConvField, Field, Galerkin, HeavyBall, SecondOrder, TimeBiasField
from odenet_lightning.gradients import Gradient
from odenet_lightning.solvers import Solver

# each with the zeros that go with it, behind the stem's 4 channels
DYNAMICS: dict[str, tuple[Callable[[], Field], int]] = {
    "second order": (lambda: SecondOrder(ConvField(4)), 4),
    "heavy ball": (lambda: HeavyBall(TimeBiasField(4), damping=0.4), 4),
    "fourier": (lambda: shaken(Galerkin(ConvField(4), "fourier")), 0),
    "polynomial of second order": (lambda: SecondOrder(shaken(Galerkin(ConvField(4), "polynomial", 4))), 4),
    "piecewise heavy ball": (lambda: shaken(Galerkin(HeavyBall(ConvField(4)), "piecewise", 2)), 4),
}
every = pytest.mark.parametrize("name", DYNAMICS)


class Spring(Field):
    """-stiffness y."""

    def __init__(self, stiffness: float) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(stiffness, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.stiffness * y


def shaken(field: Galerkin) -> Galerkin:
    """Other weights at all times: as made, they are the same at all of them."""
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return field


def made(name: str, solver: Solver, gradient: Gradient | None = None, seed: int = 0) -> ODENet:
    torch.manual_seed(seed)
    make, zeros = DYNAMICS[name]
    return ODENet(4, solver, gradient, make(), image_shape=(1, 12, 12), augment_dim=zeros)


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(count)) * 2 - 1


def order(steps: list[int], errors: list[float]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
