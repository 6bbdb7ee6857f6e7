"""RandomEnd: training solves that end at a random time."""

from dataclasses import replace

import torch
from torch import Tensor

from odenet_lightning.gradients import Gradient
from odenet_lightning.regularizers.base import Regularizer
from odenet_lightning.solvers import Problem, Solution, Solver
from odenet_lightning.solvers.settings import check_positive_number


class RandomEnd(Regularizer):
    """STEER: in training, each solve ends at a t1 drawn uniformly from (1 - width, 1 + width) instead of at 1.

    This discourages dynamics that change fast near the end. Adds nothing to the loss; `reg/end` is the end drawn. For
    any solver and gradient method. A field that depends on t is evaluated at t > 1, too. Several processes may draw
    different ends. Not for a few fixed steps, which a longer interval only makes larger.

    Source: Ghosh, Behl, Dupont, Torr, Namboodiri 2020, "STEER: Simple Temporal Regularization For Neural ODEs",
    arXiv:2006.10711.

    Args:
        width: in units of t, between 0 and the interval's length, 1.
    """

    name = "end"

    def __init__(self, width: float = 0.5) -> None:
        check_positive_number("width", width)
        if not width < 1.0:
            raise ValueError(f"width must be less than 1, the interval's length, not {width!r}")
        self.width = width

    def solve(self, gradient: Gradient, solver: Solver, problem: Problem) -> tuple[Solution, Tensor]:
        """See `Regularizer.solve`."""
        end = problem.t1 + self.width * (2 * torch.rand(()).item() - 1)
        return gradient.solve(solver, replace(problem, t1=end)), problem.y0.new_tensor(end)
