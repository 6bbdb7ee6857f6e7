"""Intervals, states and settings of solvers, and which are refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from odenet_lightning.solvers import (
    RK4,
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Euler,
    FixedStep,
    Midpoint,
    Problem,
    Solver,
    SolverError,
    TorchDiffEq,
    Tsit5,
)
from tests.methods import BAD_NUMBERS, FIXED, METHODS
from tests.problems import PROBLEMS, Decay, count_calls, relative_error, swing


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


@pytest.mark.parametrize("solver", [Dopri5(1e-2, 1e-3), TorchDiffEq("bosh3", 1e-2, 1e-3)], ids=repr)
def test_other_tolerances_leave_the_solver_as_it_is(solver: Any) -> None:
    twin = solver.with_tolerance(1e-5, None)
    assert (twin.rtol, twin.atol) == (1e-5, 1e-3)
    assert (solver.with_tolerance(None, 1e-6).rtol, solver.with_tolerance(None, 1e-6).atol) == (1e-2, 1e-6)
    assert (solver.rtol, solver.atol) == (1e-2, 1e-3)


@pytest.mark.parametrize("times", [(0.0,), (0.0, 0.0), (0.0, 1.0, 0.5), (1.0, 0.5, 0.5)])
@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), TorchDiffEq("dopri5")], ids=repr)
def test_times_without_an_order_are_refused(solver: Solver, times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must strictly increase or decrease"):
        solver.trajectory(Problem(lambda t, y: -y, torch.ones(2)), times)
