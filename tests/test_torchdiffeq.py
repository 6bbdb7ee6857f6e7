"""Agreement with torchdiffeq, and the adapter to its methods."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchdiffeq._impl.bosh3 import Bosh3Solver
from torchdiffeq._impl.odeint import SOLVERS as TORCHDIFFEQ_SOLVERS

from odenet_lightning.solvers import (
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Problem,
    SolverError,
    Step,
    TorchDiffEq,
)
from odenet_lightning.solvers.problem import unchanged
from tests.methods import ADAPTIVE_NAMES, BAD_NUMBERS, FIXED_NAMES, nan_field, torchdiffeq_counts
from tests.problems import PROBLEMS, ExactProblem, conv_problem, count_calls, logistic, relative_error, swing


def torchdiffeq_solver(name: str, **tolerances: float) -> TorchDiffEq:
    """Any of torchdiffeq's methods, with a step where it must have one."""
    options: dict[str, Any] = {"step_size": 0.02} if name in FIXED_NAMES else {}
    if name.endswith("adams"):
        options["max_order"] = 4  # the explicit one is not stable at its usual order of 12
    return TorchDiffEq(name, **tolerances, options=options)


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


# --- the adapter


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


@pytest.mark.parametrize("method", ["RK45", "DOP853", "BDF", "LSODA"])
def test_scipy_s_methods(method: str) -> None:
    solver = TorchDiffEq("scipy_solver", 1e-8, 1e-8, {"solver": method})
    with torch.no_grad():
        y = solver.solve(Problem(lambda t, y: -y, torch.ones(2, dtype=torch.float64))).y
    assert y.tolist() == pytest.approx([math.exp(-1)] * 2, rel=1e-6)
