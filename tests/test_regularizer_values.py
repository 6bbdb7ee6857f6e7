"""Values and gradients of regularizers against independent ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.regularizers import (
    ErrorEstimate,
    Jacobian,
    Kinetic,
    Regularizer,
    Stiffness,
)
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Midpoint, Problem, Solver, TorchDiffEq, Tsit5
from odenet_lightning.solvers import Reversible as ReversibleSolver
from tests.every_regularizer import EXACT, name
from tests.problems import Decay, Linear, Logistic, Swing, relative_error


@dataclass
class Flow:
    """A field whose path and Jacobian have closed forms, as functions of its parameters and y0, `[B, n]`."""

    field: nn.Module
    y0: Tensor
    y: Callable[[float], Tensor]
    row: Callable[[float, Tensor, Tensor], Tensor]  # of t, y and v: v^T df/dy


def linear() -> Flow:
    field = Linear([[0.3, 1.0], [-4.0, -0.7]])
    y0 = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    return Flow(field, y0, lambda t: y0 @ torch.linalg.matrix_exp(field.matrix * t).T, lambda t, y, v: v @ field.matrix)


def swing() -> Flow:
    field = Swing(2.0)
    y0 = torch.tensor([[1.0, -0.4]], dtype=torch.float64, requires_grad=True)
    end = torch.tensor(1.0, dtype=torch.float64)
    return Flow(
        field,
        y0,
        lambda t: y0 * torch.exp(field.strength * torch.sin(end * t)),
        lambda t, y, v: v * field.strength * torch.cos(end * t),
    )


def logistic() -> Flow:
    field = Logistic(3.0, 1.5)
    y0 = torch.tensor([[0.1, 0.4], [1.7, 0.9]], dtype=torch.float64, requires_grad=True)
    return Flow(
        field,
        y0,
        lambda t: field.capacity / (1 + (field.capacity / y0 - 1) * torch.exp(-field.rate * t)),
        lambda t, y, v: v * field.rate * (1 - 2 * y / field.capacity),
    )


PATHS = {"linear": linear, "swing": swing, "logistic": logistic}


def quadrature(path: Flow, regularizer: Regularizer) -> Tensor:
    """The integral by Gauss and Legendre's rule over the closed forms."""
    torch.manual_seed(1)
    probe = torch.randn_like(path.y0)
    total = path.y0.new_zeros(())
    for node, weight in zip(*np.polynomial.legendre.leggauss(40), strict=True):
        t = (node + 1) / 2
        y = path.y(t)
        time = torch.tensor(t, dtype=torch.float64)
        rate = path.field(time, y) if isinstance(regularizer, Kinetic) else path.row(t, y, probe)
        total = total + weight / 2 * rate.square().mean()
    return total


def solved(path: Flow, regularizer: Regularizer, gradient: Gradient, solver: Solver) -> tuple[Tensor, Tensor]:
    """y(1) and the value."""
    torch.manual_seed(1)
    solution, value = regularizer.solve(gradient, solver, Problem(path.field, path.y0))
    return solution.y, value


def gradients(path: Flow, value: Tensor) -> Tensor:
    inputs = (path.y0, *path.field.parameters())
    found = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in found])


COMBINATIONS = [
    *((Dopri5(1e-9, 1e-9), gradient) for gradient in (*EXACT, Adjoint())),
    (Dopri5(1e-9, 1e-9, first_step=0.01), Checkpoint()),
    (RK4(num_steps=150), Backprop()),
    (TorchDiffEq("dopri5", 1e-9, 1e-9), Adjoint()),
]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("regularizer", [Kinetic(), Jacobian()], ids=name)
@pytest.mark.parametrize(("solver", "gradient"), COMBINATIONS, ids=name)
def test_an_integral_equals_its_quadrature(
    kind: str, regularizer: Regularizer, gradient: Gradient, solver: Solver
) -> None:
    path = PATHS[kind]()
    _, value = solved(path, regularizer, gradient, solver)
    truth = quadrature(path, regularizer)
    assert value.item() == pytest.approx(truth.item(), rel=1e-7)
    assert relative_error(gradients(path, value), gradients(path, truth)) < 1e-6


@pytest.mark.parametrize("regularizer", [Kinetic(), Jacobian()], ids=name)
def test_the_steps_are_those_without_a_regularizer(regularizer: Regularizer) -> None:
    """The state's error alone is controlled."""
    path, solver = linear(), Dopri5(1e-4, 1e-4)
    plain = solver.solve(Problem(path.field, path.y0))
    solution, _ = regularizer.solve(Backprop(), solver, Problem(path.field, path.y0))
    assert solution.stats == plain.stats
    assert relative_error(solution.y, plain.y) < 1e-14


WHOLE = [ReversibleSolver(Dopri5(1e-2, 1e-2)), TorchDiffEq("dopri5", 1e-2, 1e-2), TorchDiffEq("bosh3", 1e-2, 1e-2)]


@pytest.mark.parametrize("solver", WHOLE, ids=repr)
def test_a_solve_replayed_whole_takes_the_same_steps(solver: Solver) -> None:
    """Under the norm that leaves the integral out."""
    path = linear()
    (y1, value), (y2, other) = (solved(path, Kinetic(), gradient, solver) for gradient in (Backprop(), Checkpoint()))
    assert torch.equal(y1, y2)
    assert relative_error(gradients(path, value + y1.sum()), gradients(path, other + y2.sum())) < 1e-12


def test_hutchinsons_estimate_is_unbiased() -> None:
    field = Linear([[0.3, 1.0], [-4.0, -0.7]])
    y0 = torch.ones(20_000, 2, dtype=torch.float64)
    torch.manual_seed(0)
    _, value = Jacobian().solve(Backprop(), Midpoint(num_steps=1), Problem(field, y0))
    truth = field.matrix.square().sum().item() / 2
    # of |v^T A|^2 / 2 the sd is at most sqrt(2) |A|_F^2 / 2: four standard errors
    assert value.item() == pytest.approx(truth, rel=4 * 2**0.5 / 20_000**0.5)


class Drift(nn.Module):
    """dy/dt = 3, of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Parameter(torch.tensor(3.0))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift.expand_as(y)


@pytest.mark.parametrize("gradient", EXACT, ids=name)
@pytest.mark.parametrize("field", [Drift(), lambda t, y: torch.full_like(y, 3.0)], ids=["module", "function"])
def test_fields_that_do_not_depend_on_y(gradient: Gradient, field: Any) -> None:
    problem = Problem(field, torch.ones(3, 2))
    values = [kind().solve(gradient, RK4(num_steps=2), problem)[1].item() for kind in (Kinetic, Jacobian)]
    assert values == pytest.approx([9.0, 0.0])


@pytest.mark.parametrize("gradient", EXACT, ids=name)
@pytest.mark.parametrize("solver", [Dopri5(1e-4, 1e-4), Tsit5(1e-4, 1e-4, first_step=0.05)], ids=name)
def test_stiffness_of_a_decay_is_its_rate(gradient: Gradient, solver: Solver) -> None:
    """f is -rate y, so that each step's estimate is the rate."""
    y0 = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    field = Decay(1.3)
    solution, value = Stiffness().solve(gradient, solver, Problem(field, y0))
    assert solution.stats.accepted > 1
    assert value.item() == pytest.approx(1.3 * solution.stats.accepted, rel=1e-9)
    by_rate, by_y0 = torch.autograd.grad(value, (field.rate, y0))
    assert by_rate.item() == pytest.approx(solution.stats.accepted, rel=1e-9)
    assert float(by_y0.abs().max()) < 1e-9


def error_of_a_decay(solver: Dopri5 | Bosh3, rate: Tensor, y: Tensor, sizes: list[float]) -> Tensor:
    """The sum of |h| E over steps of dy/dt = -rate y, by the method's stability functions."""
    tableau = solver.tableau
    assert tableau.error is not None
    stages = len(tableau.error)
    a = torch.zeros(stages, stages, dtype=torch.float64)
    for i, row in enumerate((*tableau.a, tableau.b), 1):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    total = y.new_zeros(())
    for h in sizes:
        z = -rate * h  # stages k = rate y (1 - z a)^-1 1
        k = torch.linalg.solve(torch.eye(stages, dtype=torch.float64) - z * a, torch.ones(stages, dtype=torch.float64))
        error = z * (torch.tensor(tableau.error, dtype=torch.float64) @ k) * y
        y1 = y * (1 + z * (a[-1] @ k))
        total = (
            total + h * (error / (solver.atol + solver.rtol * torch.maximum(y.abs(), y1.abs()))).square().mean().sqrt()
        )
        y = y1
    return total


@pytest.mark.parametrize("gradient", EXACT, ids=name)
@pytest.mark.parametrize("solver", [Dopri5(1e-4, 1e-4, first_step=0.1), Bosh3(1e-3, 1e-4)], ids=name)
def test_the_error_estimate_is_the_solvers(gradient: Gradient, solver: Dopri5 | Bosh3) -> None:
    y0 = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    field = Decay(2.0)
    problem = Problem(field, y0)
    _, value = ErrorEstimate().solve(gradient, solver, problem)
    sizes: list[float] = []
    solver.solve(Problem(field, y0, observe=lambda step, y1, ks: sizes.append(float(step.h))))
    truth = error_of_a_decay(solver, field.rate, y0, sizes)
    assert len(sizes) > 1
    assert value.item() == pytest.approx(truth.item(), rel=1e-9)
    inputs = (field.rate, y0)
    pairs = zip(torch.autograd.grad(value, inputs), torch.autograd.grad(truth, inputs), strict=True)
    assert all(relative_error(found, expected) < 1e-8 for found, expected in pairs)
