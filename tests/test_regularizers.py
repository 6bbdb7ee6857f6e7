"""Regularizers: what they leave alone, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning import ODENet
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.regularizers import (
    ErrorEstimate,
    Jacobian,
    Kinetic,
    RandomEnd,
    Regularizer,
    Stiffness,
    regularized,
)
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Midpoint, Problem, Solver, TorchDiffEq
from tests.every_regularizer import EVERY, EXACT, name
from tests.problems import Decay, relative_error


@pytest.mark.parametrize("regularizer", [ErrorEstimate(), Stiffness()], ids=name)
def test_a_state_that_stands_still_has_a_gradient(regularizer: Regularizer) -> None:
    y0, field = torch.ones(2, 3, dtype=torch.float64, requires_grad=True), Decay(0.0)
    _, value = regularizer.solve(Backprop(), Dopri5(), Problem(field, y0))
    found = torch.autograd.grad(value, (y0, field.rate))
    assert all(grad.isfinite().all() for grad in found)


@settings(max_examples=25, deadline=None)
@given(width=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
def test_a_random_end_is_within_its_width(width: float, seed: int) -> None:
    torch.manual_seed(seed)
    y0 = torch.tensor([[1.0]], dtype=torch.float64)
    solution, end = RandomEnd(width).solve(Backprop(), RK4(num_steps=50), Problem(Decay(1.3), y0))
    assert 1 - width <= end.item() <= 1 + width
    assert solution.y.item() == pytest.approx(float(torch.exp(-1.3 * end)), rel=1e-6)


def test_random_ends_are_spread_evenly() -> None:
    torch.manual_seed(0)
    problem = Problem(Decay(1.3), torch.ones(1, 1, dtype=torch.float64))
    ends = torch.stack([RandomEnd(0.4).solve(Backprop(), Midpoint(num_steps=1), problem)[1] for _ in range(2_000)])
    assert float(ends.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(ends.std()) == pytest.approx(0.8 / 12**0.5, rel=0.05)


def penalised(
    regularizer: Regularizer, gradient: Gradient, solver: Solver, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Value, and gradient of loss and value, of the post's network on a made-up batch."""
    torch.manual_seed(0)
    net = ODENet(channels=3, solver=solver, gradient=gradient).to(dtype).train()
    images = torch.randn(4, 1, 28, 28, dtype=dtype)
    with regularized(net, regularizer) as values:
        loss = F.cross_entropy(net(images).to(dtype), torch.arange(4))
    (value,) = values
    (loss + value).backward()
    return value, torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("first_step", ["heuristic", 0.4])
@pytest.mark.parametrize("regularizer", EVERY, ids=name)
def test_checkpoint_equals_backprop(regularizer: Regularizer, first_step: Any) -> None:
    solver = Dopri5(1e-3, 1e-3, first_step=first_step)
    (value, grads), *rest = (penalised(regularizer, g, solver, torch.float64) for g in EXACT)
    for other, others in rest:
        assert other.item() == pytest.approx(value.item(), rel=1e-12)
        assert relative_error(others, grads) < 1e-12


@pytest.mark.parametrize("regularizer", EVERY, ids=name)
def test_autocast_leaves_the_value_in_float32(regularizer: Regularizer) -> None:
    solver = Dopri5(1e-2, 1e-2, first_step=0.5)
    value, _ = penalised(regularizer, Backprop(), solver, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (half, grads), (other, others), _ = (penalised(regularizer, g, solver, torch.float32) for g in EXACT)
    assert half.dtype == torch.float32
    # a sum over steps measures rounding, too
    assert half.item() == pytest.approx(
        value.item(), rel=0.5 if isinstance(regularizer, ErrorEstimate | Stiffness) else 0.02
    )
    assert other.item() == pytest.approx(half.item(), rel=1e-2)
    assert relative_error(others, grads) < 0.05


def test_the_kernel_gives_the_operators_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = Dopri5(1e-2, 1e-2, first_step=0.5)
    for regularizer in EVERY:
        value, grads = penalised(regularizer, Backprop(), solver, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr("odenet_lightning.kernels.conv_field.library", lambda: None)
            other, others = penalised(regularizer, Backprop(), solver, torch.float32)
        assert value.item() == pytest.approx(other.item(), rel=1e-3), regularizer
        assert relative_error(grads, others) < 1e-3, regularizer


@pytest.mark.parametrize(
    ("regularizer", "gradient", "solver", "told"),
    [
        (ErrorEstimate(), Adjoint(), Dopri5(), "which Adjoint does not differentiate: use Backprop or Checkpoint"),
        (Stiffness(), Adjoint(), Dopri5(), "which Adjoint does not differentiate: use Backprop or Checkpoint"),
        (ErrorEstimate(), Backprop(), Midpoint(num_steps=1), r"not Midpoint\(num_steps=1\): use Dopri5 or Tsit5"),
        (Stiffness(), Backprop(), Dopri5(num_steps=2), "needs a solver with error control"),
        (ErrorEstimate(), Checkpoint(), TorchDiffEq(), "needs a solver with error control that shows its steps"),
        (Stiffness(), Backprop(), Bosh3(), "last stage is at the step's end: use Dopri5 or Tsit5"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_by_name(
    regularizer: Regularizer, gradient: Gradient, solver: Solver, told: str
) -> None:
    with pytest.raises(GradientError, match=f"{name(regularizer)} .*{told}"):
        regularizer.solve(gradient, solver, Problem(Decay(1.0), torch.ones(2, 2)))


@pytest.mark.slow
def test_jacobian_refuses_a_compiled_field() -> None:
    field = nn.Sequential(Decay(1.0))
    field[0].compile()
    with pytest.raises(GradientError, match="Jacobian needs: train without compile"):
        Jacobian().solve(Backprop(), Midpoint(num_steps=1), Problem(field, torch.ones(2, 2)))


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True])
@pytest.mark.parametrize("kind", [Kinetic, Jacobian, ErrorEstimate, Stiffness, RandomEnd])
def test_a_strength_is_a_positive_number(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        kind(value)


def test_an_end_stays_behind_the_start() -> None:
    with pytest.raises(ValueError, match="width must be less than 1"):
        RandomEnd(1.0)
