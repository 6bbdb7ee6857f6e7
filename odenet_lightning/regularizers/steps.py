"""ErrorEstimate and Stiffness: sums over a solver's steps, from the stages that it computes anyway."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from odenet_lightning.gradients import Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.regularizers.augmented import joined, parts
from odenet_lightning.regularizers.base import Weighted
from odenet_lightning.solvers import AdaptiveRungeKutta, Problem, Solution, Solver, Step, VectorField
from odenet_lightning.solvers.runge_kutta import add_weighted

Quantity = Callable[[AdaptiveRungeKutta, Step, Tensor, Sequence[Tensor]], Tensor]


class _Summing(Solver):
    """Solves z = (y, e): y by an adaptive method, and e as the sum of a quantity over its steps."""

    def __init__(self, method: AdaptiveRungeKutta, quantity: Quantity, shape: torch.Size) -> None:
        self.method, self.quantity, self.shape = method, quantity, shape

    @property
    def controls_error(self) -> bool:
        """As the method, which is adaptive."""
        return True

    def integrate(self, problem: Problem) -> Solution:
        """Solve for y, and sum the quantity over its steps; see `Solver.solve`."""
        y0, e = parts(problem.y0, self.shape)
        sums = [e]

        def add(step: Step, y1: Tensor, ks: Sequence[Tensor]) -> None:
            sums.append(sums[-1] + self.quantity(self.method, step, y1, ks))

        record = problem.record

        def record_joined(step: Step) -> Step:
            assert record is not None
            return record(replace(step, y=joined(step.y, sums[-1])))

        inner = replace(problem, y0=y0, observe=add, record=record and record_joined)
        solution = self.method.integrate(inner)
        return Solution(joined(solution.y, sums[-1]), solution.stats, solution.steps)

    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Compute an accepted step again; see `Solver.replay`."""
        y, e = parts(step.y, self.shape)
        step = replace(step, y=y)
        y1, ks = self.method.step(field, step.t, step.h, y, with_end=True)
        end = y1 if step.fraction == 1.0 else self.method.interpolate(y, y1, ks, step.h, step.fraction)
        return joined(end, e + self.quantity(self.method, step, y1, ks))


class _OfSteps(Weighted):
    """A sum over the accepted steps of an adaptive solver, from the stages that it computes anyway.

    Exact for the discrete solution, with step sizes as constants. The sum belongs to the solver, not to the ODE, so it
    has no continuous adjoint.
    """

    def solve(self, gradient: Gradient, solver: Solver, problem: Problem) -> tuple[Solution, Tensor]:
        """See `Regularizer.solve`."""
        name = type(self).__name__
        self.refuse_per_sample(solver)
        if not isinstance(solver, AdaptiveRungeKutta) or not solver.controls_error:
            raise GradientError(
                f"{name} needs a solver with error control that shows its steps, not {solver!r}: use Dopri5 or Tsit5"
            )
        self.check(solver)
        if not isinstance(gradient, Backprop | Checkpoint):
            raise GradientError(
                f"{name} is a sum over the solver's steps, which {type(gradient).__name__} does not differentiate: use "
                "Backprop or Checkpoint"
            )
        y0 = problem.y0
        summing = _Summing(solver, self.quantity, y0.shape)
        solution = gradient.solve(summing, replace(problem, y0=joined(y0, y0.new_zeros(len(y0)))))
        y, e = parts(solution.y, y0.shape)
        return replace(solution, y=y, steps=()), e.mean()

    def check(self, solver: AdaptiveRungeKutta) -> None:
        """Refuse a method that lacks what the quantity needs."""

    @staticmethod
    @abstractmethod
    def quantity(method: AdaptiveRungeKutta, step: Step, y1: Tensor, ks: Sequence[Tensor]) -> Tensor:
        """The quantity of an accepted step that ends in y1, with the stages ks."""


def rms(x: Tensor) -> Tensor:
    """Root of the mean square, with the derivative 0 at 0."""
    return x.square().mean().clamp_min(torch.finfo(x.dtype).tiny).sqrt()


class ErrorEstimate(_OfSteps):
    """The solver's own estimate of its error: the sum over the accepted steps of |h_j| E_j.

    E_j is the error ratio that accepts the step: the root mean square over the batch of error / (atol + rtol max(|y|,
    |y_new|)). It is small where the high derivatives of y(t) are small, so steps can be larger. Its only cost is the
    derivative.
    For adaptive methods under `Backprop` and `Checkpoint`. Not where several processes must give the results of one:
    each takes its own steps.

    Source: Pal, Ma, Shah, Rackauckas 2021, "Opening the Blackbox", arXiv:2105.03918.

    Args:
        weight: factor on the value, `reg/error_estimate`.
    """

    name = "error_estimate"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    @staticmethod
    def quantity(method: AdaptiveRungeKutta, step: Step, y1: Tensor, ks: Sequence[Tensor]) -> Tensor:
        """|h| E."""
        return abs(step.h) * rms(method.scaled_error(step.y, y1, ks, step.h))


class Stiffness(_OfSteps):
    """Shampine's estimate of stiffness, the sum over the accepted steps of |f(t', y') - f(t', y'')| / |y' - y''|.

    t' is the step's end, y' the state there, and y'' the last stage's, a less accurate one: a lower bound of the
    Jacobian's norm, over the whole batch, from two evaluations that the step makes anyway. For `Dopri5` and `Tsit5`,
    whose last stage is at the end, under `Backprop` and `Checkpoint`. In float32 below tolerances of about 1e-5 the
    two states differ by little more than rounding.

    Source: Pal, Ma, Shah, Rackauckas 2021, "Opening the Blackbox", arXiv:2105.03918; Shampine 1977.

    Args:
        weight: factor on the value, `reg/stiffness`.
    """

    name = "stiffness"

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def check(self, solver: AdaptiveRungeKutta) -> None:
        """Refuse a method without a stage at the end."""
        if solver.tableau.c[-1] != 1.0:
            raise GradientError(
                f"Stiffness needs a method whose last stage is at the step's end: use Dopri5 or Tsit5, not {solver!r}"
            )

    @staticmethod
    def quantity(method: AdaptiveRungeKutta, step: Step, y1: Tensor, ks: Sequence[Tensor]) -> Tensor:
        """The estimate of a step."""
        tableau = method.tableau
        weights = [b - a for b, a in zip(tableau.b, (*tableau.a[-1], 0.0), strict=True)]
        apart = add_weighted(ks[0] * (weights[0] * step.h), ks[1:-1], weights[1:], step.h)
        return rms(ks[-1] - ks[-2]) / rms(apart)
