"""Gradients against finite differences, against closed forms, and against each other."""

import pytest
import torch
from torch import Tensor, nn

from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    Midpoint,
    Problem,
    Solver,
    TorchDiffEq,
    Tsit5,
    rms_norm,
)
from odenet_lightning.solvers.problem import unchanged
from tests.gradient_methods import GRADIENTS, SOLVERS
from tests.gradient_problems import gradients_of, largest_difference, mixer_problem
from tests.problems import PROBLEMS, damped, relative_error, swing

# --- exact gradients


@pytest.mark.parametrize(
    "solver",
    # an adaptive solver's steps count as constants, which finite differences see at loose tolerances
    [
        Euler(num_steps=3),
        Midpoint(step_size=0.5),
        RK4(num_steps=2),
        Tsit5(num_steps=2),
        Dopri5(1e-9, 1e-9),
        Bosh3(1e-6, 1e-6, first_step=0.1),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint()], ids=lambda gradient: type(gradient).__name__)
def test_gradient_equals_finite_differences(gradient: Gradient, solver: Solver) -> None:
    field, y0 = mixer_problem()

    def solve(y0: Tensor, *params: Tensor) -> Tensor:
        return gradient.solve(solver, Problem(field, y0)).y  # the parameters are the field's own, changed in place

    assert torch.autograd.gradcheck(solve, (y0.requires_grad_(), *field.parameters()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_checkpoint_equals_backprop(name: str) -> None:
    solver = SOLVERS[name]
    cases: list[tuple[nn.Module, Tensor, float, float]] = [(*mixer_problem(), 0.0, 1.0)]
    for make in PROBLEMS.values():
        problem = make()
        cases.append((problem.field, problem.y0, problem.t0, problem.t1))
    cases.append((swing().field, swing().y0, 3.0, 0.3))
    for field, y0, t0, t1 in cases:
        plain, truth = gradients_of(Backprop(), solver, field, y0, t0, t1)
        replayed, grads = gradients_of(Checkpoint(), solver, field, y0, t0, t1)
        assert torch.equal(replayed.y, plain.y)
        assert replayed.stats == plain.stats
        assert largest_difference(grads, truth) <= 1e-10


@pytest.mark.parametrize("solver", [Dopri5(1e-4, 1e-4), Bosh3(1e-4, 1e-4), Tsit5(1e-4, 1e-4)], ids=repr)
def test_checkpoint_equals_backprop_where_the_last_step_is_interpolated(solver: Solver) -> None:
    field, y0 = mixer_problem()
    steps = solver.solve(Problem(field, y0, record=unchanged)).steps
    assert len(steps) > 1
    assert 0.0 < steps[-1].fraction < 1.0
    truth = gradients_of(Backprop(), solver, field, y0)[1]
    assert largest_difference(gradients_of(Checkpoint(), solver, field, y0)[1], truth) <= 1e-10


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
@pytest.mark.parametrize("solver", [Dopri5(1e-9, 1e-9), TorchDiffEq("dopri5", 1e-9, 1e-9)], ids=repr)
def test_gradient_of_a_linear_problem_equals_its_closed_form(solver: Solver, gradient: Gradient) -> None:
    """With y(t1) = exp(A t1) y0 and L = w . y(t1): dL/dy0 = exp(A t1)^T w; dL/dA by differences of exp."""
    problem = damped()
    matrix = problem.field.matrix
    assert isinstance(matrix, nn.Parameter)
    weights = torch.tensor([[1.0, -2.0], [0.3, 0.8]], dtype=torch.float64)

    def loss(a: Tensor) -> Tensor:
        return (weights * (problem.y0 @ torch.linalg.matrix_exp(a * problem.t1).T)).sum()

    y0 = problem.y0.clone().requires_grad_()
    (weights * gradient.solve(solver, Problem(problem.field, y0, problem.t0, problem.t1)).y).sum().backward()
    a = matrix.detach()
    assert y0.grad is not None
    assert relative_error(y0.grad, weights @ torch.linalg.matrix_exp(a * problem.t1)) < 1e-6
    by_differences, small = torch.zeros_like(a), 1e-5
    for i in range(2):
        for j in range(2):
            shift = torch.zeros_like(a)
            shift[i, j] = small
            by_differences[i, j] = (loss(a + shift) - loss(a - shift)) / (2 * small)
    assert matrix.grad is not None
    assert relative_error(matrix.grad, by_differences) < 1e-6


def test_scipy_solver_cannot_be_differentiated_by_replaying() -> None:
    """It computes outside of PyTorch; a gradient that is silently zero would train nothing."""
    pytest.importorskip("scipy")
    solver = TorchDiffEq("scipy_solver", 1e-8, 1e-8)
    field, y0 = mixer_problem()
    for gradient in (Backprop(), Checkpoint()):
        with pytest.raises(ValueError, match="scipy computes outside of torch, so its steps have no gradient"):
            gradients_of(gradient, solver, field, y0)
    truth = gradients_of(Backprop(), Dopri5(1e-8, 1e-8), field, y0)[1]
    assert largest_difference(gradients_of(Adjoint(), solver, field, y0)[1], truth) < 1e-5


# --- autocast


class Witness(nn.Module):
    """A convolutional field that notes what it sees: autocast, and the dtypes of state and answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.seen: list[tuple[bool, torch.dtype, torch.dtype]] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        answer = self.conv(torch.tanh(y))
        self.seen.append((torch.is_autocast_enabled("cpu"), y.dtype, answer.dtype))
        return answer


def witness_problem() -> tuple[Witness, Tensor]:
    torch.manual_seed(0)
    return Witness(), torch.randn(2, 2, 5, 5)


@pytest.mark.parametrize("forward", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("backward", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("solver", [RK4(num_steps=2), Dopri5(0.1, 0.1), TorchDiffEq("dopri5", 0.1, 0.1)], ids=repr)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_autocast_is_the_forward_s_in_the_backward_pass(
    gradient: Gradient, solver: Solver, forward: bool, backward: bool
) -> None:
    field, y0 = witness_problem()
    y0.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        integral = gradient.solve(solver, Problem(field, y0))
    there = len(field.seen)
    with torch.autocast("cpu", torch.bfloat16, enabled=backward):
        integral.y.square().sum().backward()
    assert integral.y.dtype == torch.float32
    assert set(field.seen) == {(forward, torch.float32, torch.bfloat16 if forward else torch.float32)}
    assert (len(field.seen) > there) == (not isinstance(gradient, Backprop))
    for tensor in (y0, *field.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.isfinite().all()


def test_autocast_gradients_agree() -> None:
    field, y0 = witness_problem()
    results = {}
    for gradient in GRADIENTS:
        with torch.autocast("cpu", torch.bfloat16):
            integral, grads = gradients_of(gradient, Dopri5(1e-3, 1e-3), field, y0)
        results[type(gradient)] = integral.y, grads
    exact = gradients_of(Backprop(), Dopri5(1e-3, 1e-3), field, y0)[1]
    for y, grads in results.values():
        assert torch.equal(y, results[Backprop][0])
        # half precision has eight bits: half a per cent an evaluation
        assert largest_difference(grads, exact) < 0.03
    assert largest_difference(results[Checkpoint][1], results[Backprop][1]) > 0.0  # no shared graph, no shared rounding


def test_step_control_is_single_precision_under_autocast() -> None:
    """As if the field itself returned single precision: no half-precision number is computed with."""
    field, y0 = witness_problem()
    seen: list[torch.dtype] = []

    def norm(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return rms_norm(x)

    with torch.autocast("cpu", torch.bfloat16):
        solution = Dopri5(1e-3, 1e-3).solve(Problem(field, y0, norm=norm))
        truth = Dopri5(1e-3, 1e-3).solve(Problem(lambda t, y: field(t, y).float(), y0))
    assert set(seen) == {torch.float32}
    assert solution.stats == truth.stats
    assert torch.equal(solution.y, truth.y)


def test_conv_field_gradients_agree() -> None:
    """The post's field, in double precision: its kinks are no obstacle."""
    torch.manual_seed(0)
    field, y0 = ConvField(3).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64).relu()
    solver = Dopri5(1e-5, 1e-5)
    truth = gradients_of(Backprop(), solver, field, y0)[1]
    assert largest_difference(gradients_of(Checkpoint(), solver, field, y0)[1], truth) < 1e-10
