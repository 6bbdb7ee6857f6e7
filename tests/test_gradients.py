"""Gradients against finite differences, against closed forms, against torchdiffeq, and against each other."""

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.kernels import conv_field
from odenet_lightning.solvers import (
    RK4,
    AdaptiveRungeKutta,
    BackwardStats,
    Bosh3,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Problem,
    Reversible,
    Solver,
    SolverError,
    TorchDiffEq,
    Tsit5,
    rms_norm,
)
from odenet_lightning.solvers.problem import unchanged
from tests.gradient_problems import gradients_of, largest_difference, loss_of, mixer_problem, saved_bytes
from tests.problems import PROBLEMS, Logistic, conv_problem, count_calls, damped, logistic, relative_error, swing

GRADIENTS = [Backprop(), Checkpoint(), Adjoint()]
SOLVERS: dict[str, Solver] = {
    "euler": Euler(num_steps=4),
    "midpoint": Midpoint(num_steps=3),
    "heun": Heun(step_size=0.4),
    "rk4": RK4(num_steps=3),
    "bosh3": Bosh3(1e-4, 1e-4),
    "bosh3 in given steps": Bosh3(num_steps=3),
    "dopri5": Dopri5(1e-4, 1e-4),
    "dopri5 cut at the end": Dopri5(1e-4, 1e-4, first_step=0.4),
    "tsit5": Tsit5(1e-4, 1e-4),
    "reversible": Reversible(Heun(num_steps=3)),
    "torchdiffeq dopri5": TorchDiffEq("dopri5", 1e-4, 1e-4),
    "torchdiffeq bosh3": TorchDiffEq("bosh3", 1e-3, 1e-3),
    "torchdiffeq rk4": TorchDiffEq("rk4", options={"step_size": 0.4}),
    "torchdiffeq implicit_adams": TorchDiffEq("implicit_adams", options={"step_size": 0.2}),
}


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


# --- the continuous adjoint


@pytest.mark.parametrize("seminorm", [False, True])
@pytest.mark.parametrize("solver", [Dopri5(1e-10, 1e-10), TorchDiffEq("dopri5", 1e-10, 1e-10)], ids=repr)
def test_adjoint_s_error_shrinks_with_its_tolerance(solver: Solver, seminorm: bool) -> None:
    field, y0 = mixer_problem()
    truth = gradients_of(Backprop(), solver, field, y0)[1]
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        gradient = Adjoint(tolerance, tolerance, seminorm)
        errors.append(largest_difference(gradients_of(gradient, solver, field, y0)[1], truth))
    assert errors[0] < 0.1
    assert all(tight < loose / 10 for loose, tight in pairwise(errors))


@pytest.mark.parametrize("solver", [Dopri5(1e-6, 1e-6), RK4(num_steps=20), TorchDiffEq("dopri5", 1e-6, 1e-6)], ids=repr)
def test_adjoint_says_by_how_much_it_misses_y0(solver: Solver) -> None:
    """dy/dt = -k y backwards: what the solver is off by at t1 grows by exp(k)."""
    y0, wide = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.linspace(0.5, 1.0, 3, dtype=torch.float64)

    def missed(k: float) -> float:
        solution = Adjoint().solve(solver, Problem(lambda t, y: -k * wide * y, y0))
        solution.y.sum().backward()
        assert solution.stats.backward is not None
        return solution.stats.backward.y0_error

    assert 0 < missed(1.0) < 1e-4
    misses = {}
    for k in range(2, 60, 3):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            misses[k] = missed(float(k))
        assert [str(w.message)[:34] for w in said] == ["Adjoint misses y0 by more than 10%"] * (misses[k] > 0.1)
    assert any(0.001 < off < 0.1 for off in misses.values())
    assert any(0.1 < off < 0.5 for off in misses.values())


def test_adjoint_says_once_that_it_misses_y0() -> None:
    """In training, things that reset Python's own memory of warnings come between."""
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -20.0 * y

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            Adjoint().solve(Dopri5(1e-3, 1e-3), Problem(field, y0)).y.sum().backward()
    assert len(said) == 1


def torchdiffeq_adjoint(
    method: str, tolerance: float, gradient: Adjoint, field: nn.Module, y0: Tensor
) -> tuple[Tensor, list[Tensor], int, int]:
    """torchdiffeq's state, gradients, and evaluations forward and backward.

    It is for fields that do not depend on t: with others torchdiffeq's adjoint has one more part, the gradient
    with respect to t, which nobody wants here and whose error shortens its steps all the same.
    """
    start = y0.clone().requires_grad_()
    field.zero_grad()
    with count_calls(field) as calls:
        y = torchdiffeq.odeint_adjoint(
            field,
            start,
            torch.tensor([0.0, 1.0], dtype=y0.dtype),
            rtol=tolerance,
            atol=tolerance,
            method=method,
            adjoint_rtol=gradient.rtol,
            adjoint_atol=gradient.atol,
            adjoint_options={"norm": "seminorm"} if gradient.seminorm else None,
        )
        assert isinstance(y, Tensor)
        forward = calls.count
        loss_of(y[1]).backward()
    grads = [start.grad, *(p.grad for p in field.parameters())]
    return y[1], [grad for grad in grads if grad is not None], forward, calls.count - forward


@pytest.mark.parametrize(
    "gradient",
    [
        Adjoint(normalise=False),
        Adjoint(rtol=1e-3, atol=1e-4, normalise=False),
        Adjoint(seminorm=True, normalise=False),
        Adjoint(rtol=1e-2, seminorm=True, normalise=False),
    ],
    ids=lambda a: f"rtol={a.rtol} atol={a.atol} seminorm={a.seminorm}",
)
@pytest.mark.parametrize("own", [False, True], ids=["TorchDiffEq", "Dopri5"])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-5])
@pytest.mark.parametrize("field_name", ["mixer", "conv"])
def test_adjoint_equals_torchdiffeq_s(
    field_name: str, tolerance: float, own: bool, gradient: Adjoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_field, "library", lambda: None)  # whose rounding is its own
    field, y0 = mixer_problem(timed=False) if field_name == "mixer" else conv_problem(batch=2)
    y, truth, forward, backward = torchdiffeq_adjoint("dopri5", tolerance, gradient, field, y0)
    solver = Dopri5(tolerance, tolerance) if own else TorchDiffEq("dopri5", tolerance, tolerance)
    with count_calls(field) as calls:
        integral, grads = gradients_of(gradient, solver, field, y0)
    rounding = 1e-10
    if field_name == "conv":  # whose kinks make much of other rounding: this project adds in another order
        rounding = 2e-3 if own else 1e-5
    assert relative_error(integral.y, y) < rounding
    # in common units: the conv's bias has no gradient but rounding, since the norm behind it takes the mean out
    assert relative_error(torch.cat([g.flatten() for g in grads]), torch.cat([g.flatten() for g in truth])) < rounding
    assert integral.stats.backward is not None
    assert (integral.stats.evaluations, integral.stats.backward.evaluations) == (forward, backward)
    assert calls.count == forward + backward


def test_adjoint_equals_torchdiffeq_s_in_other_methods() -> None:
    gradient = Adjoint(normalise=False)
    for method in ("bosh3", "dopri8"):
        field, y0 = mixer_problem(timed=False)
        y, truth, forward, backward = torchdiffeq_adjoint(method, 1e-4, gradient, field, y0)
        integral, grads = gradients_of(gradient, TorchDiffEq(method, 1e-4, 1e-4), field, y0)
        assert torch.equal(integral.y, y)
        assert largest_difference(grads, truth) < 1e-10
        assert integral.stats.backward == BackwardStats(backward)
        assert integral.stats.evaluations == forward


def test_seminorm_costs_no_more() -> None:
    field, y0 = conv_problem(batch=2)
    counts = []
    for seminorm in (False, True):
        integral, _ = gradients_of(Adjoint(seminorm=seminorm), Dopri5(1e-4, 1e-4), field, y0)
        assert integral.stats.backward is not None
        counts.append(integral.stats.backward.evaluations)
    assert counts[1] < counts[0]


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0.0, -1e-3, float("nan"), float("inf"), "1e-3"])
def test_bad_adjoint_tolerance_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Adjoint(**{name: value})


def test_solver_error_comes_out_of_backward() -> None:
    field, y0 = mixer_problem()
    solver = Dopri5(1e-3, 1e-3)
    enough = int(solver.solve(Problem(field, y0)).stats.evaluations)
    integral = Adjoint(1e-9, 1e-9).solve(solver, Problem(field, y0, max_nfe=enough))
    with pytest.raises(SolverError, match=f"max_nfe = {enough}"):
        loss_of(integral.y).backward()


# --- parameters and states of every kind


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


# --- cost


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_in_the_backward_pass_are_counted(name: str, gradient: Gradient) -> None:
    (field, y0), solver = mixer_problem(), SOLVERS[name]
    with count_calls(field) as calls:
        integral = gradient.solve(solver, Problem(field, y0))
        forward = calls.count
        loss_of(integral.y).backward()
    assert integral.stats.evaluations == forward
    back = 0 if integral.stats.backward is None else integral.stats.backward.evaluations
    assert back == calls.count - forward
    assert (back == 0) == isinstance(gradient, Backprop)
    assert (integral.stats.backward is None) == isinstance(gradient, Backprop)


@pytest.mark.parametrize(
    ("solver", "stages"),
    [(RK4(num_steps=5), 4), (Dopri5(1e-5, 1e-5, first_step=0.5), 6), (Bosh3(1e-5, 1e-5, first_step=0.5), 3)],
    ids=["RK4", "Dopri5", "Bosh3"],
)
def test_checkpoint_redoes_the_accepted_steps_only(solver: Solver, stages: int) -> None:
    problem = swing()
    integral = Checkpoint().solve(solver, Problem(problem.field, problem.y0, problem.t0, problem.t1))
    loss_of(integral.y).backward()
    assert integral.stats.backward is not None
    assert integral.stats.rejected > 0 or not isinstance(solver, AdaptiveRungeKutta)
    assert integral.stats.backward.evaluations == stages * integral.stats.accepted


def test_checkpoint_evaluates_once_more_for_an_interpolated_end() -> None:
    field, y0 = mixer_problem()
    integral, _ = gradients_of(Checkpoint(), Dopri5(1e-4, 1e-4), field, y0)
    assert integral.stats.backward is not None
    assert integral.stats.backward.evaluations == 6 * integral.stats.accepted + 1


def test_checkpoint_keeps_a_quarter_of_backprop_s_memory_at_most() -> None:
    field, y0 = conv_problem(batch=16)
    y0.requires_grad_()
    kept = {}
    for gradient in GRADIENTS:
        kept[type(gradient)], integral = saved_bytes(
            lambda gradient=gradient: gradient.solve(Dopri5(1e-5, 1e-5), Problem(field, y0)), field
        )
        assert integral.y.requires_grad
        states = integral.stats.accepted * y0.nbytes
        if isinstance(gradient, Checkpoint):
            assert kept[Checkpoint] == states  # one state an accepted step: none hidden from the count, none else
    assert kept[Checkpoint] <= 0.25 * kept[Backprop]
    assert kept[Adjoint] == 2 * y0.nbytes


def test_conv_field_gradients_agree() -> None:
    """The post's field, in double precision: its kinks are no obstacle."""
    torch.manual_seed(0)
    field, y0 = ConvField(3).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64).relu()
    solver = Dopri5(1e-5, 1e-5)
    truth = gradients_of(Backprop(), solver, field, y0)[1]
    assert largest_difference(gradients_of(Checkpoint(), solver, field, y0)[1], truth) < 1e-10
