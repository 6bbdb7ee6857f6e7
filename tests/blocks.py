"""ODE blocks to test."""

from typing import Any

from torch import Tensor, nn

from odenet_lightning.block import ODEBlock
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.solvers import Solver
from tests.problems import conv_problem

GRADIENTS = [Backprop(), Checkpoint(), Adjoint()]


def make_block(solver: Solver, gradient: Gradient | None = None, **options: Any) -> tuple[ODEBlock, Tensor]:
    """A block around the post's field, and a state to put in."""
    field, y0 = conv_problem(batch=2)
    return ODEBlock(field, solver, gradient or Backprop(), **options), y0


class Decay(nn.Module):
    """dy/dt = -y, for states of any shape."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -y
