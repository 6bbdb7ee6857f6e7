"""What an ODE block remembers: listeners and the warm step."""

import copy

import pytest
import torch

from odenet_lightning.block import ODEBlock, recorded_solves
from odenet_lightning.gradients import Backprop, Gradient
from odenet_lightning.solvers import RK4, Dopri5, Midpoint
from tests.blocks import GRADIENTS, Decay, make_block
from tests.problems import count_calls


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_listeners_are_told_of_each_solve(gradient: Gradient) -> None:
    block, y0 = make_block(Dopri5(0.1, 0.1), gradient)
    with recorded_solves(block) as solves, count_calls(block.field) as calls:
        y1 = block(y0)
        there = calls.count
        y1.square().mean().backward()
        back = calls.count - there
        (stats,) = solves
        assert stats.evaluations == there == 14
        assert (stats.backward.evaluations if stats.backward else 0) == back
        block(y0)
    block(y0)
    assert len(solves) == 2, "nobody listens any more"


def test_a_copy_of_a_block_has_no_listeners() -> None:
    block = ODEBlock(Decay(), Midpoint(num_steps=1), Backprop())
    with recorded_solves(block) as solves:
        copy.deepcopy(block)(torch.ones(1))
        assert solves == []
        block(torch.ones(1))
    assert len(solves) == 1


def test_warm_step_is_learned_in_training_and_frozen_in_evaluation() -> None:
    block, y0 = make_block(Dopri5(1e-4, 1e-4, first_step="warm"))
    assert block.warm_step is None
    block.eval()
    block(y0)
    assert block.warm_step is None
    block.train()
    with recorded_solves(block) as solves:
        block(y0)
        learned = block.warm_step
        assert learned == solves[-1].next_step
        assert learned is not None
        block.eval()
        block(300 * y0)
    assert block.warm_step == learned
    assert solves[-1].next_step != learned  # it would have been another


def test_warm_step_saves_evaluations() -> None:
    block, y0 = make_block(Dopri5(0.1, 0.1, first_step="warm"))
    with recorded_solves(block) as solves:
        for _ in range(3):
            block(y0)
    assert [stats.evaluations for stats in solves] == [14, 7, 7]


def test_solver_without_a_controller_learns_no_step() -> None:
    block, y0 = make_block(RK4(num_steps=1))
    block(y0)
    assert block.warm_step is None


def test_evaluation_does_not_depend_on_what_was_evaluated_before() -> None:
    block, y0 = make_block(Dopri5(1e-3, 1e-3, first_step="warm"))
    block(y0)
    block.eval()
    with torch.no_grad(), recorded_solves(block) as stats:
        alone = block(y0)
        for scale in (30.0, 0.01, -5.0):
            block(scale * y0)
        assert torch.equal(block(y0), alone)
    assert stats[-1] == stats[0]
    assert len({s.evaluations for s in stats}) > 1  # the others were other solves
