"""The solver Reversible: order, cost, dense output, stability, and what it refuses."""

import math
from typing import Any

import pytest
import torch

from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Problem,
    Reversible,
    RungeKutta,
    SolverError,
    Tsit5,
)
from odenet_lightning.solvers.reversible import DAMPING
from tests.gradient_problems import (
    loss_of,
    mixer_problem,
)
from tests.methods import fitted_order
from tests.problems import PROBLEMS, Decay, count_calls, oscillator, relative_error, swing
from tests.reversible_methods import CONTROLLED, each_method

# without the problems on which terms of orders 5 and 6 cancel until the error is lost in rounding
ORDERS = [
    *((method, name) for method in (Euler, Midpoint, Heun, RK4, Bosh3) for name in PROBLEMS),
    *((Dopri5, name) for name in ("decay", "oscillator", "damped", "swing")),
    *((Tsit5, name) for name in ("decay", "swing")),
]
# more than Phi alone needs: the pair's next terms are larger
COUPLED_STEPS: dict[Any, list[int]] = {
    Euler: [64, 128, 256, 512, 1024],
    Midpoint: [256, 512, 1024],
    Heun: [256, 512, 1024],
    RK4: [64, 128, 256],
    Bosh3: [48, 96, 192, 384],
    Dopri5: [128, 160, 200],
    Tsit5: [48, 68, 96],
}


@pytest.mark.parametrize(("method", "name"), ORDERS)
@torch.no_grad()
def test_order_is_the_method_s(method: type[RungeKutta], name: str) -> None:
    problem, errors = PROBLEMS[name](), []
    for n in COUPLED_STEPS[method]:
        solver = Reversible(method(num_steps=n))  # pyright: ignore[reportCallIssue]
        solution = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
        errors.append(float((solution.y - problem.exact(problem.t1)).abs().max()))
    assert fitted_order(COUPLED_STEPS[method], errors) == pytest.approx(method.tableau.order, abs=0.2)


@pytest.mark.parametrize("growth", [-1.5, -0.5, 0.8])
@pytest.mark.parametrize(
    ("method", "steps", "coupling"),
    [
        *((Euler, 2_000, None), (Bosh3, 500, None)),
        # one coupling for all steps: with their number, the error of an odd order changes its sign
        *((Euler, 2_000, 0.99999), (Euler, 2_000, 0.999), (Euler, 2_000, 0.99), (Bosh3, 500, 0.99)),
        *((Midpoint, 1_000, None), (Midpoint, 1_000, 0.999), (RK4, 200, 0.999)),
    ],
)
@torch.no_grad()
def test_the_error_is_the_method_s_times_a_factor(
    method: type[RungeKutta], steps: int, coupling: float | None, growth: float
) -> None:
    """On y' = a y over [0, 1], as the docstring has it."""
    phi = method(num_steps=steps)  # pyright: ignore[reportCallIssue]
    problem = Problem(Decay(-growth), torch.ones(1, dtype=torch.float64))
    own, pair = (float(solver.solve(problem).y) - math.exp(growth) for solver in (phi, Reversible(phi, coupling)))
    damped = DAMPING if coupling is None else -steps * math.log(coupling)
    w = damped + 2 * growth
    q = (1 - math.exp(-w)) / w
    odd = 2 * q + 2 * growth * (1 - q) / w - 1
    assert pair / own == pytest.approx(odd if method.tableau.order % 2 else 1.0, abs=0.05)


@torch.no_grad()
def test_two_steps_are_those_of_the_paper() -> None:
    problem, c = swing(), 0.7
    h, t0, y0, phi = 0.25, problem.t0, problem.y0, Heun(num_steps=1).advance
    y1 = c * y0 + (1 - c) * y0 + phi(problem.field, t0, h, y0) - y0
    z1 = y0 - (phi(problem.field, t0 + h, -h, y1) - y1)
    y2 = c * y1 + (1 - c) * z1 + phi(problem.field, t0 + h, h, z1) - z1
    found = Reversible(Heun(num_steps=2), c).solve(Problem(problem.field, y0, t0, t0 + 2 * h)).y
    assert relative_error(found, y2) < 1e-14


@each_method
def test_evaluations_are_counted(method: RungeKutta) -> None:
    (field, y0), solver = mixer_problem(), Reversible(method)
    with count_calls(field) as calls:
        solution = ReversibleGradient().solve(solver, Problem(field, y0))
        forward = calls.count
        loss_of(solution.y).backward()
    steps, stages = solution.stats.accepted, len(method.tableau.c)
    assert solution.stats.evaluations == forward
    assert solution.stats.backward is not None
    assert solution.stats.backward.evaluations == calls.count - forward == (2 * steps - 1) * stages
    first = 1 if getattr(method, "first_step", None) == 0.5 else 2
    tried = (steps + solution.stats.rejected) * stages
    assert forward == (
        first + tried + (steps - 1) * (stages + 1) if method.controls_error else (2 * steps - 1) * stages
    )


@pytest.mark.parametrize("method", CONTROLLED, ids=repr)
@torch.no_grad()
def test_error_control(method: RungeKutta) -> None:
    problem = oscillator()  # no contraction, which lets the pair part
    solver = Reversible(method)
    tolerance = solver.rtol
    assert tolerance is not None
    solution = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
    assert relative_error(solution.y, problem.exact(problem.t1)) < 100 * tolerance
    back = solver.solve(Problem(problem.field, solution.y, problem.t1, problem.t0))
    assert relative_error(back.y, problem.y0) < 200 * tolerance
    assert solution.stats.next_step is not None
    enough = int(solution.stats.evaluations)
    assert solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1, max_nfe=enough)).stats.accepted
    with pytest.raises(SolverError, match=f"max_nfe = {enough - 1}"):
        solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1, max_nfe=enough - 1))
    loose = solver.with_tolerance(0.1, 0.1)
    assert isinstance(loose, Reversible)
    assert (loose.rtol, loose.coupling) == (0.1, solver.coupling)


def test_too_many_steps_are_refused_before() -> None:
    with pytest.raises(SolverError, match=r"needs 14 evaluations, more than max_nfe = 13"):
        Reversible(Midpoint(num_steps=4)).solve(Problem(Decay(1.0), torch.ones(2).double(), max_nfe=13))


@each_method
@torch.no_grad()
def test_dense_output_ends_where_the_solve_does(method: RungeKutta) -> None:
    problem, solver = swing(), Reversible(method, 0.9)
    times = [problem.t0, 0.9, 1.7, 2.2, problem.t1]
    states = solver.trajectory(Problem(problem.field, problem.y0), times)
    end = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1)).y
    assert torch.equal(states[0], problem.y0)
    assert relative_error(states[-1], end) < 1e-6  # a step from t0 + n h ends at t1 to rounding


@torch.no_grad()
def test_dense_output_has_the_method_s_order() -> None:
    problem, errors = swing(), []
    steps = [16, 24, 36, 54]
    for n in steps:
        h = (problem.t1 - problem.t0) / n
        times = [problem.t0, *(problem.t0 + (i + x) * h for i in range(n) for x in (0.25, 0.6)), problem.t1]
        states = Reversible(RK4(num_steps=n), 0.9).trajectory(Problem(problem.field, problem.y0), times)
        errors.append(float((states - torch.stack([problem.exact(t) for t in times])).abs().max()))
    assert fitted_order(steps, errors) >= 3.7


@pytest.mark.parametrize("method", [Midpoint, RK4, Dopri5])
@torch.no_grad()
def test_stability_limit_is_the_coupling_s(method: type[RungeKutta]) -> None:
    """On y' = -y it ends at h = -ln c: below it y decays, above it the pair parts."""
    y0, sizes, c, n = torch.ones(1, dtype=torch.float64), [], 0.9, 2_000
    for share in (0.9, 1.1):
        solver = Reversible(method(num_steps=n), c)  # pyright: ignore[reportCallIssue]
        end = -math.log(c) * share * n
        sizes.append(float(solver.solve(Problem(Decay(1.0), y0, 0.0, end, max_nfe=10**6)).y.abs()))
    assert sizes[0] < 1e-6 < sizes[1]


@pytest.mark.parametrize("coupling", [0.0, -0.5, 1.1, float("nan"), True, "0.9"])
def test_bad_coupling_is_refused(coupling: Any) -> None:
    with pytest.raises(ValueError, match=r"coupling must lie in \(0, 1\]"):
        Reversible(Midpoint(num_steps=2), coupling)
