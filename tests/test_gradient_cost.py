"""What a gradient costs: evaluations in the backward pass, and memory."""

import pytest

from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.solvers import (
    RK4,
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Problem,
    Solver,
)
from tests.gradient_methods import GRADIENTS, SOLVERS
from tests.gradient_problems import gradients_of, loss_of, mixer_problem, saved_bytes
from tests.problems import conv_problem, count_calls, swing


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
