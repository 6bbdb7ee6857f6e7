"""Adaptive Runge-Kutta methods: their settings, the error estimate and the controller.

Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed. 1993, II.4.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from odenet_lightning.solvers.base import Solver
from odenet_lightning.solvers.per_sample import PerSampleSolve, state_of_each
from odenet_lightning.solvers.problem import Norm, Problem, Solution
from odenet_lightning.solvers.runge_kutta import RungeKutta, add_weighted, check_grid, grid_size
from odenet_lightning.solvers.settings import check_positive_number, check_whole
from odenet_lightning.solvers.whole_batch import AdaptiveSolve


class AdaptiveRungeKutta(RungeKutta):
    """A Runge-Kutta method with an embedded error estimate: adaptive, or in fixed steps where steps are given.

    A step is accepted where norm(error / (atol + rtol max(|y|, |y_new|))) <= 1, the mean being over
    the whole batch; the next step is h * clip(safety / ratio^(1/order), lowest, max_factor), where
    lowest is 1 after an accepted step and min_factor after a rejected one. So the steps, and with them
    the result for one image, depend on the other images of the batch, by as much as the tolerance allows.

    With `per_sample` they do not, as in torchode (Lienen and Guennemann 2022, arXiv:2210.12375): each image has a
    time, a step size, a mean and an end of its own, and leaves the batch at t1. The field then gets t as
    `[B, 1, ...]`, and must compute each image's dy/dt from its own t and y alone; others are refused. Not worthwhile
    where an evaluation of a few images takes as long as one of the batch: a solve lasts until its last image is done.

    With `first_step="heuristic"` every choice is torchdiffeq's (Hairer's guess, which costs one
    evaluation and is cautious at loose tolerances; the last step may pass t1, whose state is then
    interpolated). With a number or "warm" the last step is cut to end at t1. Error control is in
    force in all three: a first step that is too large is rejected. With `per_sample` the last step is cut always.
    """

    def __init__(
        self,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        first_step: float | Literal["heuristic", "warm"] = "heuristic",
        safety: float = 0.9,
        min_factor: float = 0.2,
        max_factor: float = 10.0,
        max_steps: int = 1_000,
        num_steps: int | None = None,
        step_size: float | None = None,
        per_sample: bool = False,
    ) -> None:
        """Adaptive, unless `num_steps` or `step_size` is given.

        Args:
            rtol: relative tolerance, not used with fixed steps.
            atol: absolute tolerance, not used with fixed steps.
            first_step: "heuristic"; a positive number; or "warm", the controller's choice after the first
                step of this block's last training solve, kept by `ODEBlock` and frozen in evaluation. Before
                the first training solve, "warm" acts as "heuristic".
            safety: factor on the step the error allows.
            min_factor: strongest shrinking after a rejected step.
            max_factor: strongest growth after an accepted one.
            max_steps: attempted steps before `SolverError`.
            num_steps: take this many equal steps instead, without error control.
            step_size: take equal steps no larger than this instead, without error control.
            per_sample: solve each image by itself. All start with the same "warm" step, which is then the
                median of the controller's choices for the images.
        """
        check_grid(type(self).__name__, num_steps, step_size)
        check_positive_number("rtol", rtol)
        check_positive_number("atol", atol)
        if isinstance(first_step, str):
            if first_step not in ("heuristic", "warm"):
                raise ValueError(f'first_step must be "heuristic", "warm" or a positive number, not {first_step!r}')
        else:
            check_positive_number("first_step", first_step)
        if not 0.0 < safety < 1.0 or not 0.0 < min_factor < 1.0 < max_factor:
            raise ValueError("safety and min_factor must lie in (0, 1), max_factor above 1")
        check_whole("max_steps", max_steps)
        self.num_steps, self.step_size = num_steps if num_steps is None else int(num_steps), step_size
        self.rtol, self.atol, self.first_step = rtol, atol, first_step
        self.safety, self.min_factor, self.max_factor = safety, min_factor, max_factor
        self.max_steps, self.per_sample = int(max_steps), per_sample

    @property
    def controls_error(self) -> bool:
        """Not where steps were given, which switches error control off."""
        return self.num_steps is None and self.step_size is None

    @property
    def couples_images(self) -> bool:
        """Whether the answer for one image depends on the others of its batch."""
        return self.controls_error and not self.per_sample

    def solves_each(self, y: Tensor) -> bool:
        """Whether a state is solved image by image; one without axes is a single image."""
        return self.controls_error and self.per_sample and y.dim() > 0

    def by_sample(self) -> Solver:
        """Return a copy that solves each image by itself; itself where it does not couple them."""
        twin = copy.copy(self) if self.couples_images else self
        twin.per_sample = self.per_sample or self.couples_images
        return twin

    def steps_over(self, span: float) -> int | None:
        """See `Solver.steps_over`."""
        return None if self.controls_error else grid_size(self.num_steps, self.step_size, span)

    def integrate(self, problem: Problem) -> Solution:
        """Step under error control; evaluations: 1 or 2, plus s per attempted step, s being the number of stages."""
        steps = self.steps_over(problem.t1 - problem.t0)
        if steps is not None:
            return self.take_equal_steps(problem, steps)
        if self.solves_each(problem.y0):
            return PerSampleSolve(self, problem).run()
        return AdaptiveSolve(self, problem).run()

    def states_at(self, problem: Problem, times: Sequence[float]) -> list[Tensor]:
        """See `Solver.states_at`."""
        if not self.solves_each(problem.y0):
            return super().states_at(problem, times)
        solution = self.solve(problem)
        return [state_of_each(self, problem, solution, time) for time in times]

    def scaled_error(self, y: Tensor, y1: Tensor, ks: Sequence[Tensor], h: float | Tensor) -> Tensor:
        """The error estimate of a step over its tolerance, in the state's shape."""
        assert self.tableau.error is not None
        weights = self.tableau.error
        error = add_weighted(ks[0] * (weights[0] * h), ks[1:], weights[1:], h)
        scale = torch.maximum(y.abs(), y1.abs()).mul_(self.rtol).add_(self.atol)
        return error.div_(scale)

    def error_ratio(self, y: Tensor, y1: Tensor, ks: Sequence[Tensor], h: float | Tensor, norm: Norm) -> Tensor:
        """norm(error / tolerance) of a step."""
        with torch.no_grad():
            return norm(self.scaled_error(y, y1, ks, h))

    def step_factor(self, ratio: float) -> float:
        """How much larger the next step may be, given this one's error ratio."""
        if ratio == 0.0:
            return self.max_factor
        lowest = 1.0 if ratio < 1.0 else self.min_factor
        return min(self.max_factor, max(self.safety / ratio ** (1 / self.tableau.order), lowest))
