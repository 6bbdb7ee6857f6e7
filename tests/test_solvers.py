"""Solvers against closed forms, against torchdiffeq, and against their own promises on cost."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchdiffeq._impl.bosh3 import Bosh3Solver
from torchdiffeq._impl.odeint import SOLVERS as TORCHDIFFEQ_SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

from odenet_lightning.solvers import (
    RK4,
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Euler,
    FixedStep,
    Heun,
    Midpoint,
    Problem,
    Solver,
    SolverError,
    Step,
    TorchDiffEq,
    Tsit5,
)
from odenet_lightning.solvers.problem import unchanged
from tests.problems import (
    PROBLEMS,
    Decay,
    ExactProblem,
    conv_problem,
    count_calls,
    damped,
    logistic,
    relative_error,
    swing,
)

FIXED: list[type[FixedStep]] = [Euler, Midpoint, Heun, RK4]
ADAPTIVE: list[type[AdaptiveRungeKutta]] = [Bosh3, Dopri5, Tsit5]
METHODS: list[type[FixedStep] | type[AdaptiveRungeKutta]] = [*FIXED, *ADAPTIVE]
FIXED_NAMES = [name for name, cls in TORCHDIFFEQ_SOLVERS.items() if issubclass(cls, FixedGridODESolver)]
ADAPTIVE_NAMES = [name for name in TORCHDIFFEQ_SOLVERS if name not in (*FIXED_NAMES, "scipy_solver")]

# enough steps to be where the leading error term rules, few enough to stay clear of rounding
STEPS: dict[Any, list[int]] = {
    Euler: [64, 128, 256, 512],
    Midpoint: [64, 128, 256],
    Heun: [64, 128, 256],
    RK4: [32, 64, 128, 256],
    Bosh3: [24, 48, 96, 192],
    Dopri5: [32, 48, 72, 108],
    Tsit5: [48, 68, 96, 136],
}


def fitted_order(steps: list[int], errors: list[float]) -> float:
    """Slope of log error over log h."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def torchdiffeq_solver(name: str, **tolerances: float) -> TorchDiffEq:
    """Any of torchdiffeq's methods, with a step where it must have one."""
    options: dict[str, Any] = {"step_size": 0.02} if name in FIXED_NAMES else {}
    if name.endswith("adams"):
        options["max_order"] = 4  # the explicit one is not stable at its usual order of 12
    return TorchDiffEq(name, **tolerances, options=options)


class ScalarReads(TorchDispatchMode):
    """Counts how often the host asks a tensor for a number, which on a GPU is a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


# --- tableaux


@pytest.mark.parametrize("method", METHODS)
def test_tableau_is_consistent(method: type[FixedStep] | type[AdaptiveRungeKutta]) -> None:
    tableau = method.tableau
    assert len(tableau.b) == len(tableau.c) == len(tableau.a) + 1
    assert tableau.c[0] == 0.0
    for i, (row, c) in enumerate(zip(tableau.a, tableau.c[1:], strict=True)):
        assert len(row) == i + 1
        assert sum(row) == pytest.approx(c, abs=1e-14)
    assert sum(tableau.b) == pytest.approx(1.0, abs=1e-14)
    if tableau.error is not None:
        assert len(tableau.error) == len(tableau.b) + 1
        assert sum(tableau.error) == pytest.approx(0.0, abs=1e-14)
        assert any(tableau.error)
    if tableau.mid is not None:
        assert sum(tableau.mid) == pytest.approx(0.5, abs=1e-9)  # Shampine's are rounded to ten digits


@pytest.mark.parametrize("method", ADAPTIVE)
def test_embedded_partner_is_one_order_lower(method: type[AdaptiveRungeKutta]) -> None:
    """The error estimate of one step falls as h^order, the partner's local error: no faster and no slower."""
    problem, tableau = damped(), method.tableau
    assert tableau.error is not None
    steps, estimates = [8, 12, 18, 27], []
    for n in steps:
        h, ks = 1.0 / n, []
        # the stages, and as the last one the slope at the step's end, whose row is the step's own weights
        for c, row in zip((*tableau.c, 1.0), ((), *tableau.a, tableau.b), strict=True):
            y = problem.y0 + h * sum(a * k for a, k in zip(row, ks, strict=True))
            ks.append(problem.field(torch.tensor(c * h), y))
        estimate = torch.stack([h * weight * k for weight, k in zip(tableau.error, ks, strict=True)]).sum(0)
        estimates.append(float(estimate.detach().abs().max()))
    assert fitted_order(steps, estimates) == pytest.approx(tableau.order, abs=0.3)


# --- convergence


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_convergence_order(method: type[FixedStep] | type[AdaptiveRungeKutta], name: str) -> None:
    problem = PROBLEMS[name]()
    truth = problem.exact(problem.t1)
    errors = []
    for n in STEPS[method]:
        solution = method(num_steps=n).solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
        errors.append(float((solution.y - truth).abs().max()))
    nominal = {Euler: 1, Midpoint: 2, Heun: 2, Bosh3: 3, RK4: 4, Dopri5: 5, Tsit5: 5}[method]
    assert method.tableau.order == nominal
    assert fitted_order(STEPS[method], errors) == pytest.approx(nominal, abs=0.2)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("method", "order"), [(RK4, 4), (Bosh3, 3), (Dopri5, 5), (Tsit5, 4)])
@torch.no_grad()
def test_dense_output_order(method: type[FixedStep] | type[AdaptiveRungeKutta], order: int, name: str) -> None:
    """Between its steps a solution is as good as the method, but for the interpolant's own error.

    The cubic's is O(h^4), the quartic's O(h^5), which is what is left of a method of that order or more.
    """
    problem = PROBLEMS[name]()
    steps, errors = [8, 12, 16, 24], []
    for n in steps:
        h = (problem.t1 - problem.t0) / n
        # the same places within each step, else the errors of different n cannot be compared
        times = [problem.t0, *(problem.t0 + (i + x) * h for i in range(n) for x in (0.25, 0.6)), problem.t1]
        states = method(num_steps=n).trajectory(Problem(problem.field, problem.y0), times)
        truth = torch.stack([problem.exact(t) for t in times])
        errors.append(float((states - truth).abs().max()))
    assert fitted_order(steps, errors) >= order - 0.3


@pytest.mark.parametrize("first_step", ["heuristic", 0.5])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("method", ADAPTIVE)
@torch.no_grad()
def test_adaptive_solution_meets_its_tolerance(
    method: type[AdaptiveRungeKutta], tolerance: float, first_step: Any
) -> None:
    """The error at t1 stays within a fixed factor of the tolerance, whatever the tolerance.

    The factor is what these problems make of local errors; it would grow as the tolerance shrinks if the last
    step, which the heuristic lets pass t1, were interpolated less well than it was solved.
    """
    solver = method(tolerance, tolerance, first_step=first_step)
    for make in PROBLEMS.values():
        problem = make()
        solution = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
        assert float((solution.y - problem.exact(problem.t1)).abs().max()) <= 30 * tolerance


@torch.no_grad()
def test_trajectory_follows_the_closed_form_backwards_and_adaptively() -> None:
    problem = swing()
    times = [3.0, 2.9, 2.0, 1.3, 0.31, 0.3]
    states = Dopri5(1e-8, 1e-8).trajectory(Problem(problem.field, problem.exact(3.0)), times)
    assert relative_error(states, torch.stack([problem.exact(t) for t in times])) < 1e-6


# --- agreement with torchdiffeq


def torchdiffeq_counts(problem: ExactProblem, name: str, tolerance: float) -> tuple[Tensor, int, int, int]:
    """torchdiffeq's solution, evaluations, accepted and rejected steps, counted without this project's help."""
    field = problem.field
    accepted, rejected = [], []
    field.callback_accept_step = lambda t, y, h: accepted.append(h)  # type: ignore[assignment]
    field.callback_reject_step = lambda t, y, h: rejected.append(h)  # type: ignore[assignment]
    times = torch.tensor([problem.t0, problem.t1], dtype=problem.y0.dtype)
    with count_calls(field) as calls:
        y = torchdiffeq.odeint(field, problem.y0, times, rtol=tolerance, atol=tolerance, method=name)
    assert isinstance(y, Tensor)
    return y[1], calls.count, len(accepted), len(rejected)


def correct_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give torchdiffeq's bosh3 a middle that is one.

    Its own is Euler's half step, wrong by O(h^2), and so is any state that it interpolates; this one is the
    middle of the cubic through the step's ends and slopes.
    """
    middle = torch.tensor([1 / 9 + 1 / 8, 1 / 6, 2 / 9, -1 / 8], dtype=torch.float64)
    monkeypatch.setattr(Bosh3Solver, "mid", middle)


@pytest.mark.parametrize("exponent", range(1, 7))
@pytest.mark.parametrize("name", [*PROBLEMS, "conv"])
@pytest.mark.parametrize(("method", "reference"), [(Dopri5, "dopri5"), (Bosh3, "bosh3")])
@torch.no_grad()
def test_heuristic_equals_torchdiffeq(
    method: type[AdaptiveRungeKutta],
    reference: str,
    name: str,
    exponent: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    correct_middle(monkeypatch)
    if name == "conv":
        field, y0 = conv_problem(batch=2)
        problem = ExactProblem(field, y0, 0.0, 1.0, lambda t: y0)
    else:
        problem = PROBLEMS[name]()
    tolerance = 10.0**-exponent
    for t0, t1 in ((problem.t0, problem.t1), (problem.t1, problem.t0)):
        directed = ExactProblem(problem.field, problem.exact(t0), t0, t1, problem.exact)
        y, evaluations, accepted, rejected = torchdiffeq_counts(directed, reference, tolerance)
        own = method(tolerance, tolerance).solve(Problem(problem.field, directed.y0, t0, t1))
        assert (own.stats.evaluations, own.stats.accepted, own.stats.rejected) == (evaluations, accepted, rejected)
        assert relative_error(own.y, y) < (2e-5 if name == "conv" else 1e-10)


# --- cost


@pytest.mark.parametrize(
    ("method", "stages"), [(Euler, 1), (Midpoint, 2), (Heun, 2), (RK4, 4), (Bosh3, 3), (Dopri5, 6)]
)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_fixed_steps_cost_exactly(method: type[FixedStep] | type[AdaptiveRungeKutta], stages: int, n: int) -> None:
    problem = swing()
    with count_calls(problem.field) as calls:
        stats = method(num_steps=n).solve(Problem(problem.field, problem.y0, problem.t0, problem.t1)).stats
    assert stats.evaluations == calls.count == stages * n
    assert (stats.accepted, stats.rejected, stats.next_step) == (n, 0, None)
    assert stats.smallest_step == stats.last_step == pytest.approx((problem.t1 - problem.t0) / n)


@pytest.mark.parametrize(("step_size", "n"), [(1.0, 1), (0.3, 4), (0.1, 10), (2.0, 1), (1 / 3, 3), (1 / 49, 49)])
@pytest.mark.parametrize("t1", [1.0, -1.0])
def test_step_size_is_the_largest_step(step_size: float, n: int, t1: float) -> None:
    problem = damped()
    stats = RK4(step_size=step_size).solve(Problem(problem.field, problem.y0, 0.0, t1)).stats
    assert stats.accepted == n
    assert stats.evaluations == 4 * n


@pytest.mark.parametrize(("first_step", "start"), [("heuristic", 2), ("warm", 1), (0.3, 1)])
@pytest.mark.parametrize(("method", "per_attempt"), [(Bosh3, 3), (Dopri5, 6), (Tsit5, 6)])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_adaptive_steps_cost_exactly(
    method: type[AdaptiveRungeKutta], per_attempt: int, first_step: Any, start: int, tolerance: float
) -> None:
    problem = logistic()
    solver = method(tolerance, tolerance, first_step=first_step)
    with count_calls(problem.field) as calls:
        stats = solver.solve(Problem(problem.field, problem.y0, 0.0, 4.0, warm_step=2.0)).stats
    assert stats.evaluations == calls.count == start + per_attempt * (stats.accepted + stats.rejected)
    assert stats.accepted >= 1


def test_warm_solver_without_a_warm_step_guesses_the_first() -> None:
    problem = logistic()
    warm = Dopri5(1e-4, 1e-4, first_step="warm").solve(Problem(problem.field, problem.y0))
    guessed = Dopri5(1e-4, 1e-4).solve(Problem(problem.field, problem.y0))
    assert warm.stats == guessed.stats
    assert torch.equal(warm.y, guessed.y)


@st.composite
def solvers(draw: st.DrawFn) -> Solver:
    """Any solver of this project, fixed or adaptive."""
    method = draw(st.sampled_from(METHODS))
    steps: dict[str, Any] = draw(
        st.sampled_from([{"num_steps": 1}, {"num_steps": 5}, {"step_size": 0.37}, {"step_size": 5.0}])
    )
    if not issubclass(method, AdaptiveRungeKutta) or draw(st.booleans()):
        return method(**steps)
    tolerance = 10.0 ** draw(st.floats(-7, -1))
    return method(tolerance, tolerance, first_step=draw(st.sampled_from(["heuristic", "warm", 0.01, 0.7, 50.0])))


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(
    solver=solvers(),
    t0=st.floats(-2, 2),
    span=st.floats(0.01, 3) | st.floats(-3, -0.01),
    warm_step=st.none() | st.floats(1e-3, 10),
    record=st.booleans(),
)
@torch.no_grad()
def test_stats_tell_what_happened(
    solver: Solver, t0: float, span: float, warm_step: float | None, record: bool
) -> None:
    problem, t1 = swing(), t0 + span
    with count_calls(problem.field) as calls:
        solution = solver.solve(
            Problem(problem.field, problem.exact(t0), t0, t1, warm_step=warm_step, record=unchanged if record else None)
        )
    stats, steps = solution.stats, solution.steps
    assert stats.evaluations == calls.count
    assert len(steps) == (stats.accepted if record else 0)
    if record:
        sizes = [abs(step.h) for step in steps]
        assert stats.smallest_step == pytest.approx(min(sizes))
        assert stats.last_step == pytest.approx(sizes[-1])
        # every step goes the solve's way, starts where the one before ended, and leads to the next state
        assert all(step.h * span > 0 for step in steps)
        ends = [step.t + step.fraction * step.h for step in steps]
        assert [step.t for step in steps] == pytest.approx([t0, *ends[:-1]], abs=1e-12)
        assert ends[-1] == pytest.approx(t1, abs=1e-12)
        assert all(step.fraction == 1.0 for step in steps[:-1])
        states = [*(step.y for step in steps[1:]), solution.y]
        for step, state in zip(steps, states, strict=True):
            assert relative_error(solver.replay(problem.field, step), state) < 1e-12


@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_never_wait_for_the_device(method: type[FixedStep] | type[AdaptiveRungeKutta]) -> None:
    problem = swing()
    with ScalarReads() as reads:
        method(num_steps=3).solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
    assert reads.count == 0


@pytest.mark.parametrize(("first_step", "guesses"), [("heuristic", 1), ("warm", 0), (0.5, 0)])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps_wait_once_each(method: type[AdaptiveRungeKutta], first_step: Any, guesses: int) -> None:
    problem = swing()
    with ScalarReads() as reads:
        stats = (
            method(1e-5, 1e-5, first_step=first_step)
            .solve(Problem(problem.field, problem.y0, problem.t0, problem.t1, warm_step=2.0))
            .stats
        )
    assert stats.rejected > 0  # else the rejected steps' reads would not be seen
    assert reads.count == guesses + stats.accepted + stats.rejected


# --- intervals and shapes


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(
    "solver",
    [
        RK4(num_steps=100),
        Bosh3(1e-8, 1e-8),
        Dopri5(1e-8, 1e-8),
        Tsit5(1e-8, 1e-8, first_step=0.1),
        TorchDiffEq("dopri5", 1e-8, 1e-8),
    ],
    ids=repr,
)
@torch.no_grad()
def test_backwards_undoes_forwards(solver: Solver, name: str) -> None:
    problem = PROBLEMS[name]()
    y1 = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1)).y
    y0 = solver.solve(Problem(problem.field, y1, problem.t1, problem.t0)).y
    assert relative_error(y1, problem.y0) > 0.1  # there was something to undo
    assert relative_error(y0, problem.y0) < 1e-5


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    t0=st.floats(-5, 5),
    t1=st.floats(-5, 5),
    method=st.sampled_from(ADAPTIVE),
    first_step=st.sampled_from(["heuristic", 0.2, 100.0]),
)
@torch.no_grad()
def test_any_interval(t0: float, t1: float, method: type[AdaptiveRungeKutta], first_step: Any) -> None:
    problem = swing(strength=0.5)
    solution = method(1e-7, 1e-7, first_step=first_step).solve(Problem(problem.field, problem.exact(t0), t0, t1))
    assert relative_error(solution.y, problem.exact(t1)) < 1e-5


@pytest.mark.parametrize("solver", [RK4(num_steps=2), Dopri5(), Bosh3(first_step=0.1)], ids=repr)
def test_empty_interval_leaves_the_state_as_it_is(solver: Solver) -> None:
    problem = swing()
    assert torch.equal(solver.solve(Problem(problem.field, problem.y0, 0.7, 0.7)).y, problem.y0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1, 3), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize(
    "solver", [Midpoint(num_steps=30), Dopri5(1e-5, 1e-5), Bosh3(1e-5, 1e-5, first_step=0.1)], ids=repr
)
@torch.no_grad()
def test_states_of_any_shape(solver: Solver, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y0 = torch.rand(shape, dtype=dtype) + 0.5
    field = Decay(1.0).to(dtype)
    y1 = solver.solve(Problem(field, y0)).y
    assert y1.shape == shape
    assert y1.dtype == dtype
    assert relative_error(y1, y0 * math.exp(-1)) < 1e-3
    times = [0.0, 0.3, 1.0]
    states = solver.trajectory(Problem(field, y0), times)
    assert states.shape == (3, *shape)
    assert relative_error(states[1], y0 * math.exp(-0.3)) < 1e-3


def test_field_gets_a_scalar_time_of_the_state_s_dtype() -> None:
    seen = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.append((t.shape, t.dtype, t.device))
        return -y

    y0 = torch.ones(2)
    for solver in (Euler(num_steps=1), Dopri5(), TorchDiffEq("dopri5")):
        solver.solve(Problem(field, y0))
    assert set(seen) == {(torch.Size(), torch.float32, y0.device)}


@torch.no_grad()
def test_field_in_half_precision_leaves_the_state_alone() -> None:
    """A field's output is cast to the state's precision before anything is computed with it."""
    y0 = torch.tensor([1.0, 0.3, -2.0])
    for solver in (RK4(num_steps=2), Dopri5(), Dopri5(first_step=0.1), TorchDiffEq("dopri5")):
        halved = solver.solve(Problem(lambda t, y: -y.bfloat16(), y0))
        truth = solver.solve(Problem(lambda t, y: -y.bfloat16().float(), y0))
        assert halved.y.dtype == torch.float32
        assert torch.equal(halved.y, truth.y)
        assert halved.stats == truth.stats


# --- refusing to go on


def nan_field(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.nan


def nan_after(time: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A field that is finite up to a time and NaN behind it."""
    return lambda t, y: torch.where(t > time, torch.nan, torch.ones_like(y))


FAILURES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, Any], dict[str, Any], str]] = {
    "nan at once": (nan_field, {}, {}, "NaN or infinite"),
    "nan later": (nan_after(0.5), {}, {}, "too small|NaN or infinite"),
    "nan right behind t0": (nan_after(0.0), {}, {}, "too small|NaN or infinite"),
    "blow-up": (lambda t, y: y * y, {}, {"t1": 1.5}, "too small|NaN or infinite|max_steps"),
    "max_steps": (lambda t, y: torch.cos(99 * t) + 0 * y, {"max_steps": 3}, {}, "max_steps = 3"),
    "max_nfe": (lambda t, y: torch.cos(99 * t) + 0 * y, {}, {"max_nfe": 40}, "max_nfe = 40"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first_step", ["heuristic", 0.6])
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("failure", FAILURES)
def test_solver_error_says_where_and_what_to_do(
    failure: str, method: type[AdaptiveRungeKutta], first_step: Any, dtype: torch.dtype
) -> None:
    field, options, arguments, why = FAILURES[failure]
    calls = 0

    def counted(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return field(t, y)

    solver = method(2e-5, 3e-6, first_step=first_step, **options)
    with pytest.raises(SolverError) as error:
        solver.solve(Problem(counted, torch.ones(4, dtype=dtype), **arguments))
    message = str(error.value)
    assert re.search(why, message)
    assert method.__name__ in message
    assert re.search(r"t = [-+.\de]+", message)
    # a guess made from a field that is not finite is not finite either
    assert re.search(r"h = ([-+.\de]+|nan)", message)
    assert "rtol = 2e-05" in message
    assert "atol = 3e-06" in message
    assert re.search(r"rms of the state [-+.\de]+", message)
    assert f"{calls} evaluations" in message
    assert "fixed step" in message
    assert "learning rate" not in message, "a solver does not know whether it is in training"
    assert ("larger max_" in message) == failure.startswith("max_")
    assert calls <= arguments.get("max_nfe", 4_000)


def test_underflow_is_named() -> None:
    with pytest.raises(SolverError, match="too small to change t"):
        Dopri5(first_step=0.5).solve(Problem(nan_after(0.4), torch.ones(1)))


def test_blow_up_stops_before_the_pole() -> None:
    """The solution of y' = y^2, y(0) = 1 is 1 / (1 - t)."""
    with pytest.raises(SolverError) as error:
        Dopri5(1e-6, 1e-6).solve(Problem(lambda t, y: y * y, torch.ones(1, dtype=torch.float64), 0.0, 1.5))
    stopped = re.search(r"t = ([-+.\de]+)", str(error.value))
    assert stopped is not None
    assert float(stopped[1]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("max_nfe", "fits"), [(8, True), (7, False)])
def test_fixed_steps_keep_to_max_nfe(max_nfe: int, fits: bool) -> None:
    problem = swing()
    with count_calls(problem.field) as calls:
        if fits:
            RK4(num_steps=2).solve(Problem(problem.field, problem.y0, max_nfe=max_nfe))
        else:
            with pytest.raises(SolverError, match=r"8 evaluations.*max_nfe = 7"):
                RK4(num_steps=2).solve(Problem(problem.field, problem.y0, max_nfe=max_nfe))
    assert calls.count == (8 if fits else 0)


BAD_NUMBERS = [0, 0.0, -1, -1e-3, math.nan, math.inf]


@pytest.mark.parametrize("value", [*BAD_NUMBERS, None, "1e-3"])
@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("solver", [Bosh3, Dopri5, Tsit5, TorchDiffEq])
def test_bad_tolerances_are_refused(solver: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        solver(**{name: value})


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["num_steps", "step_size"])
@pytest.mark.parametrize("method", METHODS)
def test_bad_steps_are_refused(method: type[FixedStep] | type[AdaptiveRungeKutta], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        method(**{name: value})


@pytest.mark.parametrize("method", METHODS)
def test_two_kinds_of_steps_are_refused(method: type[FixedStep] | type[AdaptiveRungeKutta]) -> None:
    with pytest.raises(ValueError, match="not both"):
        method(num_steps=2, step_size=0.1)


def test_fraction_of_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps"):
        Euler(num_steps=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", FIXED)
def test_fixed_method_without_steps_is_refused(method: type[FixedStep] | type[AdaptiveRungeKutta]) -> None:
    """Never one silent step over the whole interval."""
    with pytest.raises(ValueError, match=r"num_steps.*step_size"):
        method()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("first_step", value) for value in (*BAD_NUMBERS, "guess", "")),
        *(("safety", value) for value in (0.0, 1.0, math.nan)),
        *(("min_factor", value) for value in (0.0, 1.0, -1.0)),
        *(("max_factor", value) for value in (1.0, 0.5, math.nan)),
        *(("max_steps", value) for value in (0, -3)),
    ],
)
def test_bad_step_control_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Dopri5(**{name: value})


@pytest.mark.parametrize("solver", [Dopri5(1e-2, 1e-3), TorchDiffEq("bosh3", 1e-2, 1e-3)], ids=repr)
def test_other_tolerances_leave_the_solver_as_it_is(solver: Any) -> None:
    twin = solver.with_tolerance(1e-5, None)
    assert (twin.rtol, twin.atol) == (1e-5, 1e-3)
    assert (solver.with_tolerance(None, 1e-6).rtol, solver.with_tolerance(None, 1e-6).atol) == (1e-2, 1e-6)
    assert (solver.rtol, solver.atol) == (1e-2, 1e-3)


# --- the first step


@pytest.mark.parametrize("first_step", ["warm", 50.0])
@pytest.mark.parametrize("method", ADAPTIVE)
@torch.no_grad()
def test_too_large_a_first_step_is_rejected(method: type[AdaptiveRungeKutta], first_step: Any) -> None:
    problem = logistic()
    solution = method(1e-6, 1e-6, first_step=first_step).solve(Problem(problem.field, problem.y0, warm_step=50.0))
    assert solution.stats.rejected >= 1
    assert relative_error(solution.y, problem.exact(1.0)) < 3e-5


@pytest.mark.parametrize("t1", [2.0, -2.0])
@pytest.mark.parametrize("first_step", [1e-3, 0.3, 0.999, 1.3, 2.0, 7.0])
@pytest.mark.parametrize("method", ADAPTIVE)
@torch.no_grad()
def test_given_first_step_ends_on_t1(method: type[AdaptiveRungeKutta], first_step: float, t1: float) -> None:
    problem = damped()
    solution = method(1e-4, 1e-4, first_step=first_step).solve(
        Problem(problem.field, problem.y0, 0.0, t1, record=unchanged)
    )
    last = solution.steps[-1]
    assert last.fraction == 1.0
    assert last.t + last.h == t1


@torch.no_grad()
def test_small_first_step_is_taken_as_given() -> None:
    problem = damped()
    steps = Dopri5(1e-3, 1e-3, first_step=0.05).solve(Problem(problem.field, problem.y0, record=unchanged)).steps
    assert steps[0].h == 0.05
    assert steps[1].h > 0.05


@pytest.mark.parametrize("exponent", range(1, 6))
@pytest.mark.parametrize("method", ADAPTIVE)
@torch.no_grad()
def test_warm_step_never_costs_more_than_the_heuristic(method: type[AdaptiveRungeKutta], exponent: int) -> None:
    """Solve after solve of other states of the post's field, each starting with what the last one learned."""
    tolerance, warm_step = 10.0**-exponent, None
    solver = method(tolerance, tolerance, first_step="warm")
    for seed in range(6):
        field, y0 = conv_problem(batch=4)
        y0 = conv_problem(batch=4, seed=seed)[1]
        stats = solver.solve(Problem(field, y0, warm_step=warm_step)).stats
        heuristic = method(tolerance, tolerance).solve(Problem(field, y0)).stats
        warm_step = stats.next_step
        assert warm_step is not None
        assert 0.0 < warm_step <= 1.0
        if seed >= 3:
            assert stats.evaluations <= heuristic.evaluations


# --- the torchdiffeq adapter


@pytest.mark.parametrize("name", TORCHDIFFEQ_SOLVERS)
@torch.no_grad()
def test_every_method_of_torchdiffeq_solves(name: str) -> None:
    if name == "scipy_solver":
        pytest.importorskip("scipy")
    problem = swing()
    solver = torchdiffeq_solver(name, rtol=1e-5, atol=1e-5)
    with count_calls(problem.field) as calls:
        solution = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1, record=unchanged))
    # what one can expect of each; bosh3 and fehlberg2 interpolate their last step badly
    tolerance = {"euler": 0.3, "midpoint": 1e-2, "heun2": 1e-2, "bosh3": 1e-2, "fehlberg2": 0.2}.get(name, 1e-3)
    assert relative_error(solution.y, problem.exact(problem.t1)) < tolerance
    assert solution.stats.evaluations == calls.count
    assert solver.replay(problem.field, solution.steps[0]).equal(solution.y)
    times = [problem.t1, 2.0, problem.t0]
    states = solver.trajectory(Problem(problem.field, problem.exact(problem.t1)), times)
    assert relative_error(states, torch.stack([problem.exact(t) for t in times])) < tolerance


@pytest.mark.parametrize("name", ADAPTIVE_NAMES)
@torch.no_grad()
def test_torchdiffeq_steps_are_counted(name: str) -> None:
    y, evaluations, accepted, rejected = torchdiffeq_counts(logistic(), name, 1e-5)
    problem = logistic()
    solution = TorchDiffEq(name, 1e-5, 1e-5).solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
    stats = solution.stats
    assert solution.y.equal(y)
    assert (stats.evaluations, stats.accepted, stats.rejected) == (evaluations, accepted, rejected)
    assert 0.0 < stats.smallest_step <= stats.last_step


@pytest.mark.parametrize("name", FIXED_NAMES)
@pytest.mark.parametrize("t1", [1.0, -1.0])
@torch.no_grad()
def test_torchdiffeq_fixed_steps_are_counted(name: str, t1: float) -> None:
    problem = swing()
    stats = TorchDiffEq(name, options={"step_size": 0.25}).solve(Problem(problem.field, problem.y0, 0.0, t1)).stats
    assert (stats.accepted, stats.rejected) == (4, 0)
    assert stats.smallest_step == stats.last_step == pytest.approx(0.25)


@pytest.mark.parametrize("name", FIXED_NAMES)
def test_torchdiffeq_fixed_method_without_a_step_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="step_size"):
        TorchDiffEq(name)


@pytest.mark.parametrize("step_size", BAD_NUMBERS)
def test_torchdiffeq_bad_step_is_refused(step_size: float) -> None:
    with pytest.raises(ValueError, match="step_size must be a positive number"):
        TorchDiffEq("rk4", options={"step_size": step_size})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri6", {}),
        ("dopri5", {"stepsize": 0.1}),
        ("dopri5", {"step_size": 0.1}),
        ("rk4", {"step_size": 0.1, "h": 1}),
    ],
)
def test_torchdiffeq_unknown_names_are_refused(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=method):
        TorchDiffEq(method, options=options)


def test_torchdiffeq_options_are_passed_on_and_not_shared() -> None:
    options = {"first_step": 1.0}
    solver = TorchDiffEq("dopri5", 0.1, 0.1, options=options)
    options["first_step"] = 1e-3
    field, y0 = conv_problem()
    stats = solver.solve(Problem(field, y0)).stats
    assert (stats.evaluations, stats.accepted, stats.last_step) == (7, 1, 1.0)


@pytest.mark.parametrize(
    ("field", "options", "max_nfe"),
    [
        (nan_field, {}, 10_000),
        (lambda t, y: y * y, {}, 10_000),
        (lambda t, y: torch.cos(99 * t) * y, {"max_num_steps": 3}, 10_000),
        (lambda t, y: torch.cos(99 * t) * y, {}, 30),
    ],
    ids=["nan", "blow-up", "max_num_steps", "max_nfe"],
)
def test_torchdiffeq_failure_is_a_solver_error(
    field: Callable[[Tensor, Tensor], Tensor], options: dict[str, Any], max_nfe: int
) -> None:
    calls = 0

    def counted(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return field(t, y)

    solver = TorchDiffEq("dopri5", 1e-6, 1e-6, options=options)
    with pytest.raises(SolverError, match="looser tolerances"):
        solver.solve(Problem(counted, torch.ones(2, dtype=torch.float64), 0.0, 2.0, max_nfe=max_nfe))
    assert calls <= max_nfe


def test_torchdiffeq_replays_part_of_a_step() -> None:
    problem = swing()
    state = TorchDiffEq("dopri5", 1e-8, 1e-8).replay(problem.field, Step(0.3, 2.7, problem.y0, fraction=0.5))
    assert relative_error(state, problem.exact(1.65)) < 1e-6


@pytest.mark.parametrize("times", [(0.0,), (0.0, 0.0), (0.0, 1.0, 0.5), (1.0, 0.5, 0.5)])
@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), TorchDiffEq("dopri5")], ids=repr)
def test_times_without_an_order_are_refused(solver: Solver, times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must strictly increase or decrease"):
        solver.trajectory(Problem(lambda t, y: -y, torch.ones(2)), times)


@pytest.mark.parametrize("method", ["RK45", "DOP853", "BDF", "LSODA"])
def test_scipy_s_methods(method: str) -> None:
    solver = TorchDiffEq("scipy_solver", 1e-8, 1e-8, {"solver": method})
    with torch.no_grad():
        y = solver.solve(Problem(lambda t, y: -y, torch.ones(2, dtype=torch.float64))).y
    assert y.tolist() == pytest.approx([math.exp(-1)] * 2, rel=1e-6)
