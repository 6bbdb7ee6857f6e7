"""Step control: tolerances, first steps, waits for the device, and where it gives up."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from odenet_lightning.solvers import (
    AdaptiveRungeKutta,
    Dopri5,
    FixedStep,
    Problem,
    SolverError,
)
from odenet_lightning.solvers.problem import unchanged
from tests.methods import ADAPTIVE, BAD_NUMBERS, FIXED, nan_field
from tests.problems import PROBLEMS, conv_problem, damped, logistic, relative_error, swing


class ScalarReads(TorchDispatchMode):
    """Counts how often the host asks a tensor for a number, which on a GPU is a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


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


def test_warm_solver_without_a_warm_step_guesses_the_first() -> None:
    problem = logistic()
    warm = Dopri5(1e-4, 1e-4, first_step="warm").solve(Problem(problem.field, problem.y0))
    guessed = Dopri5(1e-4, 1e-4).solve(Problem(problem.field, problem.y0))
    assert warm.stats == guessed.stats
    assert torch.equal(warm.y, guessed.y)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("first_step", value) for value in (*BAD_NUMBERS, "guess", "")),
        *(("safety", value) for value in (0.0, 1.0, math.nan)),
        *(("min_factor", value) for value in (0.0, 1.0, -1.0)),
        *(("max_factor", value) for value in (1.0, 0.5, math.nan)),
        *(("max_steps", value) for value in (0, -3, 6.0, True, None)),
    ],
)
def test_bad_step_control_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Dopri5(**{name: value})


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
