"""Solvers against closed forms, and against their own promises on cost."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odenet_lightning.gradients import Checkpoint
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
    Tsit5,
)
from odenet_lightning.solvers.problem import unchanged
from tests.methods import ADAPTIVE, METHODS, STEPS, fitted_order
from tests.problems import PROBLEMS, count_calls, damped, logistic, relative_error, swing

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


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (lambda n: Midpoint(num_steps=n), Midpoint(num_steps=3)),
        (lambda n: Dopri5(num_steps=n, max_steps=n), Dopri5(num_steps=3, max_steps=3)),
        (lambda n: Checkpoint(slots=n), Checkpoint(slots=3)),
    ],
)
def test_settings_from_numpy_become_plain(made: Any, plain: Any) -> None:
    """Checkpoints hold nothing but plain data."""
    found = made(np.int64(3))
    assert repr(found) == repr(plain)
    assert {type(value) for value in vars(found).values()} == {type(value) for value in vars(plain).values()}
