"""Gradients for parameters and states of every kind."""

import pytest
import torch
from torch import Tensor, nn

from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.solvers import (
    RK4,
    Dopri5,
    Problem,
)
from tests.gradient_methods import GRADIENTS
from tests.gradient_problems import gradients_of, largest_difference, loss_of, mixer_problem
from tests.problems import Logistic, logistic, relative_error


class Partial(nn.Module):
    """A logistic field with a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used = Logistic(2.0, 1.5)
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.used(t, y)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_unused_parameter_gets_nothing(gradient: Gradient) -> None:
    field, y0, solver = Partial(), logistic().y0, Dopri5(1e-9, 1e-9)
    loss_of(gradient.solve(solver, Problem(field, y0)).y).backward()
    truth = gradients_of(Backprop(), solver, field.used, y0)
    assert field.unused.grad is None, "zeros would let weight decay shrink it"
    field.used.zero_grad()
    loss_of(gradient.solve(solver, Problem(field, y0)).y).backward()
    for param, true in zip(field.used.parameters(), truth[1][1:], strict=True):
        assert param.grad is not None
        assert relative_error(param.grad, true) < 1e-6


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_frozen_parameter_gets_nothing_and_changes_nothing(gradient: Gradient) -> None:
    (field, y0), solver = mixer_problem(), RK4(num_steps=20)
    truth = gradients_of(gradient, solver, field, y0)[1]
    field.zero_grad()
    field.weight.requires_grad_(False)
    start = y0.clone().requires_grad_()
    loss_of(gradient.solve(solver, Problem(field, start)).y).backward()
    assert field.weight.grad is None
    assert start.grad is not None
    assert field.bias.grad is not None
    assert largest_difference([start.grad, field.bias.grad], [truth[0], truth[2]]) < 1e-12


class Constant(nn.Module):
    """dy/dt = a constant, with or without a gradient of its own."""

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.speed = nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64), requires_grad=learns)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.speed.expand_as(y)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_field_that_does_not_depend_on_the_state(gradient: Gradient, learns: bool) -> None:
    """y1 = y0 + 2 speed, hence dL/dy0 = w and dL/dspeed = 2 w."""
    field, weights = Constant(learns), torch.tensor([3.0, 4.0], dtype=torch.float64)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (weights * gradient.solve(Dopri5(), Problem(field, y0, 0.0, 2.0)).y).sum().backward()
    assert y0.grad is not None
    assert relative_error(y0.grad, weights) < 1e-12
    assert (field.speed.grad is not None) == learns
    if field.speed.grad is not None:
        assert relative_error(field.speed.grad, 2 * weights) < 1e-12


class Free(nn.Module):
    """dy/dt = sin y, without parameters."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_field_without_parameters(gradient: Gradient) -> None:
    """tan(y/2) grows as e^t, hence dy1/dy0 = sin(y1) / sin(y0)."""
    y0 = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64)
    integral, grads = gradients_of(gradient, Dopri5(1e-9, 1e-9), Free(), y0)
    y1 = 2 * torch.atan(torch.tan(y0 / 2) * torch.e)
    y1.requires_grad_()
    loss_of(y1).backward()
    assert y1.grad is not None
    assert relative_error(integral.y, y1) < 1e-7
    assert relative_error(grads[0], y1.grad * torch.sin(y1) / torch.sin(y0)) < 1e-7


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_start_without_gradient(gradient: Gradient) -> None:
    (field, y0), solver = mixer_problem(), Dopri5(1e-6, 1e-6)
    truth = gradients_of(gradient, solver, field, y0)[1][1:]
    field.zero_grad()
    loss_of(gradient.solve(solver, Problem(field, y0)).y).backward()
    assert not y0.requires_grad
    grads = [p.grad for p in field.parameters() if p.grad is not None]
    assert largest_difference(grads, truth) < 1e-12


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_nothing_to_differentiate(gradient: Gradient) -> None:
    assert not gradient.solve(Dopri5(), Problem(Free(), torch.ones(2))).y.requires_grad


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_no_grad_mode(gradient: Gradient) -> None:
    field, y0 = mixer_problem()
    solver = Dopri5(1e-6, 1e-6)
    with torch.no_grad():
        integral = gradient.solve(solver, Problem(field, y0.clone().requires_grad_()))
    assert not integral.y.requires_grad
    assert integral.stats.backward is None
    assert torch.equal(integral.y, solver.solve(Problem(field, y0)).y.detach())


@pytest.mark.parametrize("gradient", [Checkpoint(), Adjoint()], ids=lambda gradient: type(gradient).__name__)
def test_field_used_twice(gradient: Gradient) -> None:
    (field, y0), solver = mixer_problem(), Dopri5(1e-9, 1e-9)

    def through_two(gradient: Gradient) -> list[Tensor]:
        start = y0.clone().requires_grad_()
        field.zero_grad()
        first = gradient.solve(solver, Problem(field, start)).y
        loss_of(gradient.solve(solver, Problem(field, first * first, 0.0, 0.5)).y + first).backward()
        grads = [start.grad, field.weight.grad, field.bias.grad]
        return [grad for grad in grads if grad is not None]

    assert largest_difference(through_two(gradient), through_two(Backprop())) < 1e-6


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_empty_interval(gradient: Gradient) -> None:
    field, y0 = mixer_problem()
    start = y0.clone().requires_grad_()
    y1 = gradient.solve(Dopri5(), Problem(field, start, 0.7, 0.7)).y
    assert torch.equal(y1, y0)
    loss_of(y1).backward()
    assert start.grad is not None
    expected = torch.autograd.grad(loss_of(probe := y0.clone().requires_grad_()), probe)[0]
    assert relative_error(start.grad, expected) < 1e-12


@pytest.mark.parametrize("gradient", [Checkpoint(), Adjoint()], ids=lambda gradient: type(gradient).__name__)
def test_parameter_changed_before_backward_is_noticed(gradient: Gradient) -> None:
    field, y0 = mixer_problem()
    loss = loss_of(gradient.solve(RK4(num_steps=2), Problem(field, y0)).y)
    with torch.no_grad():
        field.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("gradient", [Checkpoint(), Adjoint()], ids=lambda gradient: type(gradient).__name__)
def test_second_derivative_is_refused_rather_than_wrong(gradient: Gradient) -> None:
    field, y0 = mixer_problem()
    y0.requires_grad_()
    y1 = gradient.solve(RK4(num_steps=2), Problem(field, y0)).y
    with pytest.raises(GradientError, match=r"create_graph=True.*Backprop"):
        torch.autograd.grad(y1.square().sum(), y0, create_graph=True)
