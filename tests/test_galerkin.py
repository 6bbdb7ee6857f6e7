"""Weights that are functions of t: against closed forms, and of any field."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from odenet_lightning.fields import ConvField, Field, Galerkin, TimeBiasField
from odenet_lightning.fields.dynamics import Basis, piecewise
from odenet_lightning.solvers import RK4, Euler, Heun, Midpoint, Problem
from tests.dynamics import Spring, order, shaken

BASES: list[Basis] = ["fourier", "polynomial", "piecewise"]


@pytest.mark.parametrize("basis", BASES)
@torch.no_grad()
def test_weights_are_those_functions_of_t(basis: Basis) -> None:
    field = shaken(Galerkin(ConvField(4).double(), basis, terms=3))
    y = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    for t in (0.0, 0.2, 0.4, 0.7, 1.0):
        psi = {
            "fourier": [1.0, math.cos(math.pi * t), math.cos(2 * math.pi * t)],
            "polynomial": [1.0, 2 * t - 1, 2 * (2 * t - 1) ** 2 - 1],
            "piecewise": [t < 1 / 3, 1 / 3 <= t < 2 / 3, t >= 2 / 3],
        }[basis]
        plain = copy.deepcopy(field.coefficients[0])
        for parameters in zip(plain.parameters(), *(each.parameters() for each in field.coefficients), strict=True):
            parameters[0].copy_(sum(value * theta for value, theta in zip(psi, parameters[1:], strict=True)))
        time = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(field(time, y), plain(time, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("terms", [1, 3])
def test_as_made_it_is_the_plain_field(basis: Basis, terms: int) -> None:
    plain = TimeBiasField(4)
    nn.init.normal_(plain.bias)
    field, y = Galerkin(copy.deepcopy(plain), basis, terms), torch.randn(2, 4, 6, 6)
    for t in torch.tensor([0.0, 0.3, 1.0]):
        torch.testing.assert_close(field(t, y), plain(t, y))
    assert sum(p.numel() for p in field.parameters()) == terms * sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("terms", [2, 3, 7, 49, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_of_a_piece_find_its_weights(terms: int, dtype: torch.dtype) -> None:
    """Times as a midpoint step takes them, up to rounding."""
    h = 1.0 / terms
    for i in range(terms):
        for t in (0.0 + i * h, 0.0 + i * h + 0.5 * h):
            assert [float(value) for value in piecewise(torch.tensor(t, dtype=dtype), terms)].index(1.0) == i
    assert float(piecewise(torch.ones((), dtype=dtype), terms)[-1]) == 1.0


@pytest.mark.parametrize(
    ("method", "steps", "nominal"),
    [
        (Euler, [96, 192, 384], 1),
        (Midpoint, [12, 24, 48, 96], 2),
        (Midpoint, [13, 25, 49, 97], 1),
        (Heun, [12, 24, 48, 96], 1),
        (RK4, [12, 24, 48, 96], 1),
    ],
)
@torch.no_grad()
def test_what_is_piecewise_keeps_the_order_only_as_stated(method: Any, steps: list[int], nominal: int) -> None:
    """dy/dt = -k(t) y."""
    field, y0 = Galerkin(Spring(1.0), "piecewise", terms=3), torch.ones(1, dtype=torch.float64)
    for coefficient, stiffness in zip(field.coefficients, (1.0, -2.0, 2.5), strict=True):
        coefficient.stiffness.fill_(stiffness)  # pyright: ignore
    truth = math.exp(-(1.0 - 2.0 + 2.5) / 3)
    problem = Problem(field, y0)
    errors = [abs(float(method(num_steps=n).solve(problem).y) - truth) for n in steps]
    assert order(steps, errors) == pytest.approx(nominal, abs=0.2)


def test_weight_norm_in_galerkin() -> None:
    """torch's older one cannot be copied."""
    plain = ConvField(4)
    weight_norm(plain.conv)
    field, y = Galerkin(copy.deepcopy(plain)), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(field(torch.tensor(0.3), y), plain(torch.tensor(0.3), y))
    shaken(field)(torch.tensor(0.3), y).sum().backward()
    assert all(p.grad is not None for p in field.parameters())
    older = ConvField(4)
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(older.conv)
    with pytest.raises(ValueError, match=r"ConvField cannot be copied.*parametrizations\.weight_norm"):
        Galerkin(older)
    Galerkin(older, terms=1)


def test_galerkin_of_a_layer_under_two_names() -> None:
    """It keeps its parameters, and both uses get the weights of t."""

    class Twice(Field):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.same = self.conv

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.same(torch.tanh(self.conv(y))))

    field, y = shaken(Galerkin(Twice())), torch.randn(2, 4, 6, 6)
    before = list(field.parameters())
    for t in (0.0, 0.5, 1.0):
        field(torch.tensor(t), y).square().sum().backward()
    assert all(one is other and one.grad is not None for one, other in zip(before, field.parameters(), strict=True))
    assert len(before) == 6
