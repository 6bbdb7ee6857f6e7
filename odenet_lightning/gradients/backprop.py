"""Backpropagation through the solver's steps."""

from odenet_lightning.gradients.base import Gradient
from odenet_lightning.solvers import Problem, Solution, Solver


class Backprop(Gradient):
    """Automatic differentiation through every accepted step of the solver.

    Exact (to rounding) for the discrete solution; one vector-Jacobian product per evaluation and no further
    evaluation, so it is usually the fastest. Memory grows with the evaluations of the accepted steps: every one keeps
    its intermediate results. Step sizes count as constants (not in `TorchDiffEq`, see there). Higher
    derivatives, `torch.func` and forward mode work.

    Do not use it when memory is short: `Checkpoint` gives the same gradient with less.
    """

    def solve(self, solver: Solver, problem: Problem) -> Solution:
        """See `Gradient.solve`."""
        return solver.solve(problem)
