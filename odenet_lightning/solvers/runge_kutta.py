"""One step of an explicit Runge-Kutta method, its replay, its dense output, and a solve in equal steps.

Times and step sizes are Python floats, so a solve in equal steps needs no device-to-host synchronisation.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed. 1993; Shampine 1986 (the
state at half a step of Dormand and Prince's method).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from odenet_lightning.kernels import FusedStep, Plan
from odenet_lightning.solvers.base import Solver
from odenet_lightning.solvers.evaluation import evaluate, overwritten_error
from odenet_lightning.solvers.problem import Problem, Solution, SolverError, SolveStats, Step, VectorField
from odenet_lightning.solvers.settings import check_positive_number, check_whole


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge-Kutta method with s stages.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j);  y(t + h) ~ y + h sum_i b_i k_i.

    Attributes:
        order: the error of a step is O(h^(order + 1)).
        a: the s - 1 rows below the first, strictly lower triangular.
        b: weights of the step.
        c: times of the stages, in units of h.
        error: weights of the error estimate b - b*, over the stages and, as the last entry,
            f(t + h, y(t + h)), which is the next step's first stage ("first same as last").
            None where the method has no embedded partner.
        mid: weights, over the same, of the state at half a step, for dense output of order 4; None
            falls back to the cubic Hermite interpolant (order 3).
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...] | None = None
    mid: tuple[float, ...] | None = None


def weighted(ks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of weights_i k_i, a weight of which is not zero."""
    (weight, first), *rest = [(weight, k) for weight, k in zip(weights, ks, strict=False) if weight != 0.0]
    total = first * weight
    for weight, k in rest:
        total.add_(k, alpha=weight)
    return total


def add_weighted(y: Tensor, ks: Sequence[Tensor], weights: Sequence[float], h: float | Tensor) -> Tensor:
    """The sum y + h sum_i weights_i k_i: one pass over memory per non-zero weight, one new tensor in all.

    Two, and one pass more, where h is a tensor, of each image.
    """
    if isinstance(h, Tensor):
        return torch.addcmul(y, weighted(ks, weights), h)
    total = y
    for k, weight in zip(ks, weights, strict=False):
        if weight != 0.0:
            total = torch.add(y, k, alpha=weight * h) if total is y else total.add_(k, alpha=weight * h)
    return total


@cache
def plan_of(tableau: Tableau, with_end: bool) -> Plan:
    """The tableau as kernels take it; the error is estimated where f is evaluated at the end."""
    return Plan((*tableau.a, tableau.b), tableau.error or () if with_end else (), with_end)


def fused_step(
    field: VectorField,
    plan: Plan,
    h: float | Tensor,
    y: Tensor,
    k_first: Tensor | None = None,
    tolerance: tuple[float, float] = (0.0, 0.0),
) -> FusedStep | None:
    """A step by the field's own kernel; None where it has none, or none that applies here.

    A field with a kernel for whole steps has a method `runge_kutta_step`, with the arguments after the first; h is of
    all images, or of each, `[B, 1, 1, 1]`.
    """
    take = getattr(field, "runge_kutta_step", None)
    return None if take is None else take(plan, h, y, k_first, tolerance)


class RungeKutta(Solver):
    """The base class of explicit Runge-Kutta methods: one step, its replay, and its dense output."""

    tableau: Tableau

    def step(
        self,
        field: VectorField,
        t: float | Tensor,
        h: float | Tensor,
        y: Tensor,
        k0: Tensor | None = None,
        with_end: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """One step of size h from y(t).

        Args:
            field: f(t, y).
            t: start time, of all images or of each, `[B, 1, ...]`.
            h: step size, likewise.
            y: state at t.
            k0: f(t, y), where known.
            with_end: whether the stages are to end with f(t + h, y(t + h)).

        Returns:
            The state at t + h and the stages.
        """
        ks = [evaluate(field, t, y) if k0 is None else k0]
        versions = [ks[0]._version]
        for row, c in zip(self.tableau.a, self.tableau.c[1:], strict=True):
            ks.append(evaluate(field, t + c * h, add_weighted(y, ks, row, h)))
            versions.append(ks[-1]._version)
        y1 = add_weighted(y, ks, self.tableau.b, h)
        if with_end:
            ks.append(evaluate(field, t + h, y1))
        if any(k._version != version for k, version in zip(ks, versions, strict=False)):
            raise overwritten_error(field)
        return y1, ks

    def advance(self, field: VectorField, t: float | Tensor, h: float | Tensor, y: Tensor) -> Tensor:
        """The state at t + h."""
        fused = fused_step(field, plan_of(self.tableau, False), h, y)
        return self.step(field, t, h, y)[0] if fused is None else fused.y1

    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Compute an accepted step again; inside the step, by the method's dense output."""
        t, h, y = step.t, step.h, step.y
        if not isinstance(step.fraction, Tensor) and step.fraction == 1.0:
            return self.advance(field, t, h, y)
        y1, ks = self.step(field, t, h, y, with_end=True)
        return self.interpolate(y, y1, ks, h, step.fraction)

    def interpolate(self, y: Tensor, y1: Tensor, ks: Sequence[Tensor], h: float | Tensor, x: float | Tensor) -> Tensor:
        """State at x in [0, 1] of a step, by the quartic (or cubic) through its ends, slopes and middle."""
        f0, f1, mid = ks[0], ks[-1], self.tableau.mid
        weights = [1 - 3 * x**2 + 2 * x**3, 3 * x**2 - 2 * x**3]  # cubic Hermite, of y and y1
        slopes = [x * (1 - x) ** 2, -(x**2) * (1 - x)]  # of h f0 and h f1
        cubic = weights[0] * y + weights[1] * y1 + h * (slopes[0] * f0 + slopes[1] * f1)
        if mid is None:
            return cubic
        bump = 16 * x**2 * (1 - x) ** 2  # 1 at the middle; 0, with its slope, at both ends
        cubic_mid = 0.5 * (y + y1) + (h / 8) * (f0 - f1)
        return cubic + bump * (add_weighted(y, ks, mid, h) - cubic_mid)

    def take_equal_steps(self, problem: Problem, steps: int) -> Solution:
        """Solve in equal steps, without error control; evaluations: steps times the number of stages."""
        evaluations = steps * len(self.tableau.c)
        if evaluations > problem.max_nfe:
            raise SolverError(
                f"{self!r} needs {evaluations} evaluations, more than max_nfe = {problem.max_nfe}: "
                "take fewer steps or raise max_nfe"
            )
        h = (problem.t1 - problem.t0) / steps
        y, taken = problem.y0, []
        for i in range(steps):
            t = problem.t0 + i * h
            if problem.record is not None:
                taken.append(problem.record(Step(t, h, y)))
            y = self.advance(problem.field, t, h, y)
        return Solution(y, SolveStats(evaluations, steps, 0, abs(h), abs(h)), taken)


def check_grid(name: str, num_steps: int | None, step_size: float | None) -> None:
    """Refuse settings that do not make a grid of equal steps."""
    if num_steps is not None and step_size is not None:
        raise ValueError(f"{name} takes num_steps or step_size, not both")
    if num_steps is not None:
        check_whole("num_steps", num_steps)
    if step_size is not None:
        check_positive_number("step_size", step_size)


def grid_size(num_steps: int | None, step_size: float | None, span: float) -> int:
    """Number of equal steps over an interval of length |span|."""
    if num_steps is not None:
        return num_steps
    assert step_size is not None
    return max(1, math.ceil(abs(span) / step_size - 1e-9))


class FixedStep(RungeKutta):
    """A Runge-Kutta method in equal steps, without error control."""

    def __init__(self, num_steps: int | None = None, step_size: float | None = None) -> None:
        """Give one of the two.

        Args:
            num_steps: number of equal steps over the interval.
            step_size: largest step, in units of t; the interval is cut into equal steps no larger.
        """
        if num_steps is None and step_size is None:
            raise ValueError(f"{type(self).__name__} takes fixed steps: give num_steps or step_size")
        check_grid(type(self).__name__, num_steps, step_size)
        self.num_steps, self.step_size = num_steps if num_steps is None else int(num_steps), step_size

    def steps_over(self, span: float) -> int:
        """See `Solver.steps_over`."""
        return grid_size(self.num_steps, self.step_size, span)

    def integrate(self, problem: Problem) -> Solution:
        """Take equal steps; see `Solver.solve`."""
        return self.take_equal_steps(problem, self.steps_over(problem.t1 - problem.t0))
