"""Checkpoint(slots=N): the fewest steps again that so many states allow, the same gradient, and no more memory."""

import functools
from math import comb
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odenet_lightning.block import ODEBlock
from odenet_lightning.gradients import Backprop, Checkpoint, Gradient, Reversible
from odenet_lightning.gradients.binomial import Kept, backwards, places, split
from odenet_lightning.solvers import Bosh3, Dopri5, Euler, Midpoint, Problem, TorchDiffEq
from odenet_lightning.solvers import Reversible as ReversibleSolver
from odenet_lightning.studies.memory import LiveBytes
from tests.gradient_problems import (
    Noisy,
    gradients_of,
    grads_of,
    largest_difference,
    loss_of,
    made,
    mixer_problem,
    saved_bytes,
    start,
)
from tests.problems import conv_problem


@functools.cache
def fewest(steps: int, slots: int) -> int:
    """Steps taken, none twice more than it must be, to undo so many steps from the last to the first: by trying all."""
    if steps == 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, slots - 1) + fewest(m, slots) for m in range(1, steps))


def formula(steps: int, slots: int) -> int:
    """The same in closed form (Griewank and Walther 2000)."""
    r = next(r for r in range(steps + 1) if comb(slots + r, slots) >= steps)
    return r * steps - comb(slots + r, r - 1) if r else 0


def test_the_closed_form_is_the_fewest_and_the_split_reaches_it() -> None:
    for slots in range(1, 9):
        for steps in range(1, 90):
            assert formula(steps, slots) == fewest(steps, slots)
            if steps > 1 and slots > 1:
                ahead = split(steps, slots)
                assert ahead + fewest(steps - ahead, slots - 1) + fewest(ahead, slots) == fewest(steps, slots)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 120), slots=st.integers(1, 12), known=st.booleans())
def test_steps_are_given_back_in_order_by_the_fewest_steps_in_so_many_slots(
    steps: int, slots: int, known: bool
) -> None:
    """States are their numbers, so that each shows where it came from."""
    y0, taken = torch.zeros(()), 0
    kept = [Kept(place, torch.tensor(float(place))) for place in (places(steps, slots) if known else ())]
    assert len(kept) < slots

    def take(place: int, y: Tensor) -> Tensor:
        nonlocal taken
        assert float(y) == place
        taken += 1
        assert len(kept) < slots
        return y + 1

    seen = [(place, float(y)) for place, y in backwards(y0, kept, steps, slots, take)]
    assert seen == [(place, float(place)) for place in reversed(range(steps))]
    assert taken + steps == (fewest(steps + 1, slots) if known else steps + fewest(steps, slots))
    assert not kept


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("steps", [1, 2, 10, 33])
def test_recomputed_steps_are_counted_and_the_gradient_is_the_same(steps: int, slots: int) -> None:
    field, y0 = mixer_problem()
    solver = Midpoint(num_steps=steps)
    plain, truth = gradients_of(Checkpoint(), solver, field, y0)
    few, grads = gradients_of(Checkpoint(slots=slots), solver, field, y0)
    assert torch.equal(few.y, plain.y)
    assert few.stats == plain.stats
    assert all(torch.equal(one, other) for one, other in zip(grads, truth, strict=True))
    assert few.stats.backward is not None
    assert few.stats.backward.evaluations == 2 * fewest(steps + 1, slots)


@pytest.mark.parametrize("slots", [1, 3, 100])
def test_under_error_control_the_steps_are_counted_only_in_the_end(slots: int) -> None:
    field, y0 = mixer_problem()
    solver = Bosh3(1e-6, 1e-6, first_step=0.1)
    truth = gradients_of(Backprop(), solver, field, y0)[1]
    few, grads = gradients_of(Checkpoint(slots=slots), solver, field, y0)
    assert largest_difference(grads, truth) <= 1e-10
    steps = few.stats.accepted
    assert steps > 10
    assert few.stats.backward is not None
    assert few.stats.backward.evaluations == 3 * (steps + fewest(steps, slots))


@pytest.mark.parametrize(
    "solver", [Dopri5(1e-6, 1e-6), TorchDiffEq("dopri5", 1e-4, 1e-4), TorchDiffEq("rk4", options={"step_size": 0.1})]
)
def test_an_interpolated_end_and_a_solve_that_is_one_step(solver: Any) -> None:
    field, y0 = mixer_problem()
    truth = gradients_of(Backprop(), solver, field, y0)[1]
    assert largest_difference(gradients_of(Checkpoint(slots=2), solver, field, y0)[1], truth) <= 1e-10


def test_noise_is_the_forward_pass_s_however_often_a_step_is_taken() -> None:
    plain, *others = (
        grads_of(made(Noisy, Midpoint(num_steps=9), gradient), start())
        for gradient in (Backprop(), Checkpoint(), Checkpoint(slots=1), Checkpoint(slots=3))
    )
    for other in others:
        assert torch.equal(plain[0], other[0]), "bit for bit"  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("gradient", [Checkpoint(), Checkpoint(slots=3), Reversible()], ids=repr)
def test_a_second_backward_pass(gradient: Gradient) -> None:
    field, y0 = mixer_problem()
    y0.requires_grad_()
    solver = ReversibleSolver(Midpoint(num_steps=12)) if isinstance(gradient, Reversible) else Midpoint(num_steps=12)
    solution = gradient.solve(solver, Problem(field, y0))
    loss = loss_of(solution.y)
    first = torch.autograd.grad(loss, (y0, *field.parameters()), retain_graph=True)
    assert solution.stats.backward is not None
    once = solution.stats.backward.evaluations
    second = torch.autograd.grad(loss, (y0, *field.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert solution.stats.backward.evaluations == 2 * once


def test_memory_is_that_of_the_slots() -> None:
    field, y0 = conv_problem(batch=2, size=13)
    y0.requires_grad_()
    held, peak = {}, {}
    for slots, steps in ((None, 64), (4, 64), (4, 16)):
        gradient, solver = Checkpoint(slots=slots), Midpoint(num_steps=steps)
        kept, _ = saved_bytes(
            lambda gradient=gradient, solver=solver: gradient.solve(solver, Problem(field, y0)), field
        )
        held[slots, steps] = kept
        with LiveBytes() as live:
            gradient.solve(solver, Problem(field, y0)).y.sum().backward()
        peak[slots, steps] = live.peak
    assert held[None, 64] == 64 * y0.nbytes
    assert held[4, 64] == held[4, 16] == 4 * y0.nbytes
    assert peak[4, 64] <= 1.15 * peak[4, 16], "nothing but the grid and samples of the ends grow with the steps"
    assert peak[4, 64] < 0.3 * peak[None, 64]


@pytest.mark.parametrize("slots", [0, -1, 2.0, True, "4"])
def test_bad_slots_are_refused(slots: Any) -> None:
    with pytest.raises(ValueError, match="slots must be a whole number of at least 1"):
        Checkpoint(slots=slots)


def test_default_and_repr() -> None:
    assert Checkpoint() == Checkpoint(slots=None) != Checkpoint(slots=3)
    assert repr(Checkpoint(slots=3)) == "Checkpoint(slots=3)"
    block = ODEBlock(conv_problem()[0], Euler(num_steps=2), Checkpoint(slots=1))
    block(conv_problem()[1]).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
