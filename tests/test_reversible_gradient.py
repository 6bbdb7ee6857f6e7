"""Reversible's gradient: exactness, rounding, memory, and the kernel's steps of it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Backprop, Checkpoint, GradientError
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.kernels import library
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
)
from odenet_lightning.studies.memory import LiveBytes
from tests.gradient_problems import (
    gradients_of,
    largest_difference,
    mixer_problem,
    saved_bytes,
)
from tests.problems import PROBLEMS, Decay, conv_problem, relative_error
from tests.reversible_methods import each_method


@pytest.mark.parametrize("coupling", [None, 0.9, 0.999, 1.0])
@each_method
def test_equals_backprop_through_the_same_steps(method: RungeKutta, coupling: float | None) -> None:
    solver = Reversible(method, coupling)
    cases: list[tuple[nn.Module, Tensor, float, float]] = [(*mixer_problem(), 0.0, 1.0)]
    cases += [(p.field, p.y0, p.t0, p.t1) for p in (make() for make in PROBLEMS.values())]
    for field, y0, t0, t1 in cases:
        plain, truth = gradients_of(Backprop(), solver, field, y0, t0, t1)
        for gradient in (ReversibleGradient(), Checkpoint(), Checkpoint(slots=2)):
            found, grads = gradients_of(gradient, solver, field, y0, t0, t1)
            assert torch.equal(found.y, plain.y)
            assert found.stats == plain.stats
            assert largest_difference(grads, truth) <= 1e-10


def test_checkpoint_takes_the_warm_steps_again() -> None:
    grads = []
    for gradient in (Backprop(), Checkpoint()):
        field, y0 = Decay(3.0), torch.tensor([[1.0, -2.0]], dtype=torch.float64, requires_grad=True)
        problem = Problem(field, y0, warm_step=0.7)
        solution = gradient.solve(Reversible(Dopri5(1e-3, 1e-3, first_step="warm")), problem)
        by_y0, by_rate = torch.autograd.grad(solution.y.sum(), (y0, field.rate))
        grads.append(torch.cat([by_y0.flatten(), by_rate.flatten()]))
    assert relative_error(grads[1], grads[0]) < 1e-13


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 100),
    coupling=st.none() | st.floats(0.9, 1.0),
    method=st.sampled_from([Euler, Midpoint, Heun, RK4]),
    scale=st.floats(0.1, 3.0),
)
def test_equals_backprop_for_any_steps_and_coupling(
    steps: int, coupling: float | None, method: Any, scale: float
) -> None:
    field, y0 = mixer_problem()
    solver = Reversible(method(num_steps=steps), coupling)
    truth = gradients_of(Backprop(), solver, field, scale * y0)[1]
    found, grads = gradients_of(ReversibleGradient(), solver, field, scale * y0)
    assert largest_difference(grads, truth) <= 1e-9
    assert found.stats.backward is not None
    assert found.stats.backward.y0_error <= 1e-9


def test_gradient_equals_finite_differences() -> None:
    field, y0 = mixer_problem()

    def solve(y0: Tensor, *params: Tensor) -> Tensor:
        return ReversibleGradient().solve(Reversible(Heun(num_steps=3), 0.8), Problem(field, y0)).y

    assert torch.autograd.gradcheck(solve, (y0.requires_grad_(), *field.parameters()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("steps", "lost"), [(64, 1e-5), (1_000, 1e-4)])
def test_many_steps_in_single_precision(steps: int, lost: float) -> None:
    """Undoing them multiplies rounding by exp(2), whatever their number."""
    field, y0 = conv_problem(batch=1, size=6)
    solver = Reversible(Euler(num_steps=steps))
    double = ConvField(6).double()
    double.load_state_dict(field.state_dict())
    truth = gradients_of(Backprop(), solver, double, y0.double())[1]
    found, grads = gradients_of(ReversibleGradient(), solver, field, y0)
    one, other = (torch.cat([g.double().flatten() for g in each]) for each in (grads, truth))
    assert float((one - other).norm() / other.norm()) < lost
    assert found.stats.backward is not None
    assert 0 < found.stats.backward.y0_error < lost


def test_a_coupling_that_loses_the_start_is_refused() -> None:
    """0.99 for each of 1,000 steps multiplies rounding by 23,000."""
    field, y0 = conv_problem(batch=1, size=6)
    solution = ReversibleGradient().solve(Reversible(Euler(num_steps=1_000), 0.99), Problem(field, y0))
    with pytest.raises(GradientError, match="a coupling nearer to 1"):
        solution.y.sum().backward()


def test_memory_does_not_grow_with_the_steps() -> None:
    field, y0 = conv_problem(batch=2, size=13)
    y0.requires_grad_()
    held, peak = [], []
    for steps in (2, 64):
        solver = Reversible(Midpoint(num_steps=steps))
        kept, _ = saved_bytes(lambda solver=solver: ReversibleGradient().solve(solver, Problem(field, y0)), field)
        held.append(kept)
        with LiveBytes() as live:
            ReversibleGradient().solve(solver, Problem(field, y0)).y.sum().backward()
        peak.append(live.peak)
    assert held == [2 * y0.nbytes, 2 * y0.nbytes]
    assert peak[1] <= 1.05 * peak[0]


@pytest.mark.skipif(library() is None, reason="no kernel here")
@pytest.mark.parametrize("method", [Midpoint(num_steps=3), Dopri5(1e-3, 1e-3), Bosh3(1e-3, 1e-3, 0.2)], ids=repr)
def test_the_kernel_takes_whole_steps_of_it(method: RungeKutta, monkeypatch: pytest.MonkeyPatch) -> None:
    field, y0 = conv_problem(batch=2)
    taken: list[str] = []
    step, once = ConvField.runge_kutta_step, ConvField.forward
    monkeypatch.setattr(ConvField, "runge_kutta_step", lambda *args: taken.append("step") or step(*args))
    monkeypatch.setattr(ConvField, "forward", lambda *args: taken.append("once") or once(*args))
    solution, grads = gradients_of(ReversibleGradient(), Reversible(method), field, y0)
    steps = solution.stats.accepted
    assert taken.count("step") == 2 * (2 * steps - 1) + solution.stats.rejected
    # f(t, z) at the start of each step, which all attempts share, and one for the guess at the first
    guess = 0 if getattr(method, "first_step", None) == 0.2 else 1
    assert taken.count("once") == (steps + guess if method.controls_error else 0)
    monkeypatch.undo()
    double = ConvField(6).double()
    double.load_state_dict(field.state_dict())
    truth = gradients_of(Backprop(), Reversible(method), double, y0.double())[1]
    one, other = (torch.cat([g.double().flatten() for g in each]) for each in (grads, truth))
    assert float((one - other).norm() / other.norm()) < 1e-3
