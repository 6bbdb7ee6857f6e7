"""Reversible: any explicit Runge-Kutta method in steps that can be undone by algebra."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from odenet_lightning.solvers.adaptive import AdaptiveRungeKutta
from odenet_lightning.solvers.base import Solver, step_to
from odenet_lightning.solvers.evaluation import evaluate
from odenet_lightning.solvers.problem import Problem, Solution, SolverError, SolveStats, Step, VectorField, again, whole
from odenet_lightning.solvers.runge_kutta import RungeKutta
from odenet_lightning.solvers.whole_batch import AdaptiveSolve

DAMPING = 2.0  # -ln of the product of all c of a solve, where no coupling is given; a larger one loses more digits


class Reversible(Solver):
    """A Runge-Kutta method Phi, made reversible by a second state z (McCallum and Foster 2024, arXiv:2410.11648).

    With z_0 = y_0, step h and coupling c, each step is two of Phi, the second one backwards in time:
    y_{n+1} = c (y_n - z_n) + Phi_h(t_n, z_n);  z_{n+1} = z_n + y_{n+1} - Phi_{-h}(t_{n+1}, y_{n+1}).
    Both can be solved for the earlier state, so `gradients.Reversible` keeps the last pair only. The result is y.

    N equal steps of s stages cost (2 N - 1) s evaluations: the last z is not needed. Under error control,
    Phi's estimate for the step from z decides on a step. Each attempt costs s evaluations, and each accepted step
    s + 1 more, except the last, which ends at t1.

    Coupling. Over a solve, y - z is damped by the product of all c, called exp(-D) here, and undoing the steps
    multiplies rounding by exp(D). By default c = exp(-2 |h| / |t1 - t0|), so D = 2 and the factor is 7.4, with any
    number of steps. The paper takes one c for all steps, so D = -N ln c: diffrax's 0.999 multiplies rounding by 2.7 in
    1,000 steps, 0.99 by 23,000. In float32, y_0 has a relative error of 3e-6 after 64 steps of the post's field are
    undone, and of 5e-5 after 1,000.

    Order. y and z converge with Phi's order p. To leading order, Phi_{-h} undoes the error of Phi_h if p is even, and
    doubles it if p is odd: y - z is then of order p, too. On y' = a y over [0, T], the error of y_N is Phi's times
    2 q + 2 a T (1 - q) / w - 1, where w = D + 2 a T, q = (1 - exp(-w)) / w. This factor is near 1 at D = 0 and a T = 0,
    and -1 for large D. So if D grows with the number of steps, as it does with one c for all, the errors of `Euler`,
    `Bosh3`, `Dopri5` and `Tsit5` change their sign on the way, at 0.999 between 500 and 5,000 steps, and the order
    cannot be seen there. With D = 2 it is seen from some ten to a hundred steps on, later where the leading terms are
    small (`Tsit5`) or cancel.

    Stability is limited by D, not by Phi. On y' = a y the pair has, beside exp(a t), a second solution that ends as
    exp(-D - a T). Where a flow contracts at a rate L, y and z diverge unless L T < D. What this adds to the error is
    of higher order, but times exp(2 L T - D), and undoing the steps multiplies rounding by up to exp(L T). So more
    steps do not help much, and no coupling suits a flow that contracts by several powers of ten.

    Do not use it with gradients other than `gradients.Reversible`: Phi alone is as accurate with half the evaluations,
    and `Checkpoint` recomputes the whole solve as one step. Nor is it needed where memory allows for `Checkpoint`.
    """

    def __init__(self, method: RungeKutta, coupling: float | None = None) -> None:
        """Take the method's steps, equal ones or under error control.

        Args:
            method: Phi and its steps, such as `Midpoint(num_steps=8)`.
            coupling: c of all steps, in (0, 1]; by default exp(-2 |h| / |t1 - t0|).
        """
        is_number = isinstance(coupling, float | int) and not isinstance(coupling, bool)
        if coupling is not None and not (is_number and 0.0 < coupling <= 1.0):
            raise ValueError(f"coupling must lie in (0, 1], not {coupling!r}")
        if getattr(method, "per_sample", False):
            raise ValueError("Reversible takes the same steps for all images of a batch: leave per_sample out")
        self.method, self.coupling = method, coupling

    @property
    def controls_error(self) -> bool:
        """Whether the method controls its error."""
        return self.method.controls_error

    @property
    def rtol(self) -> float | None:
        """The method's relative tolerance, if it has one."""
        return getattr(self.method, "rtol", None)

    def with_tolerance(self, rtol: float | None, atol: float | None) -> Solver:
        """Return the same solver with new tolerances of its method; None leaves one as it is."""
        method = self.method.with_tolerance(rtol, atol)
        assert isinstance(method, RungeKutta)
        return Reversible(method, self.coupling)

    def coupling_over(self, span: float) -> Callable[[float], float]:
        """The coupling of a step of size |h|, in a solve over an interval of length |span|."""
        fixed = self.coupling
        return (lambda h: math.exp(-DAMPING * abs(h / span))) if fixed is None else lambda h: fixed

    def integrate(self, problem: Problem) -> Solution:
        """Return the pair's y; see `Solver.solve`. For `Problem.record`, the whole solve is one step."""
        steps = [] if problem.record is None else [problem.record(whole(problem))]
        pair = self.couple(replace(problem, record=None))
        return Solution(pair.y[0], pair.stats, steps)

    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Repeat the solve over the step's interval; see `Solver.replay`."""
        return self.integrate(again(field, step)).y

    def solve_pair(self, problem: Problem) -> Solution:
        """See `Solver.solve`; y is the pair (y_N, z_{N-1}), `[2, *y0.shape]`, and the steps are those of Phi in turn.

        The first is from z_0 to the end of the interval, the second back from y_1, the third from z_1, and so on.
        """
        return self.checked(problem, self.couple)

    def couple(self, problem: Problem) -> Solution:
        """`solve_pair` of a problem that has been checked."""
        if isinstance(self.method, AdaptiveRungeKutta) and self.controls_error:
            return _ControlledSolve(self.method, self.coupling_over(problem.t1 - problem.t0), problem).run()
        steps = self.method.steps_over(problem.t1 - problem.t0)
        assert steps is not None
        evaluations = (2 * steps - 1) * len(self.method.tableau.c)
        if evaluations > problem.max_nfe:
            raise SolverError(
                f"{self!r} needs {evaluations} evaluations, more than max_nfe = {problem.max_nfe}: "
                "take fewer steps or raise max_nfe"
            )
        h = (problem.t1 - problem.t0) / steps
        c = self.coupling_over(problem.t1 - problem.t0)(h)
        y = z = problem.y0
        taken: list[Step] = []

        def phi(t: float, h: float, state: Tensor) -> Tensor:
            if problem.record is not None:
                taken.append(problem.record(Step(t, h, state)))
            return self.method.advance(problem.field, t, h, state)

        for n in range(steps):
            t = problem.t0 + n * h
            if n > 0:
                z = z + y - phi(t, -h, y)
            y = c * (y - z) + phi(t, h, z)
        return Solution(torch.stack((y, z)), SolveStats(evaluations, steps, 0, abs(h), abs(h)), taken)

    def states_at(self, problem: Problem, times: Sequence[float]) -> list[Tensor]:
        """Phi's dense output; at the start of a step it is off by (1 - c) (z - y), within the method's error."""
        taken = self.solve_pair(problem).steps
        others = [problem.y0, *(step.y for step in taken[1::2])]
        c = self.coupling_over(problem.t1 - problem.t0)
        forward = [
            replace(step, context=c(float(step.h)) * (y - step.y)) for step, y in zip(taken[::2], others, strict=True)
        ]
        steps = [step_to(time, forward) for time in times]
        return [step.context + self.method.replay(problem.field, step) for step in steps]


class _ControlledSolve(AdaptiveSolve):
    """A coupled solve under error control; `self.y` is z."""

    def __init__(self, method: AdaptiveRungeKutta, coupling: Callable[[float], float], problem: Problem) -> None:
        super().__init__(method, problem)
        self.coupling = coupling
        self.needs_no_stages = True

    def run(self) -> Solution:
        """Step until t1 is reached."""
        y = self.y
        k0, h, _ = self.begin()
        while True:
            h, _, end, _, grown = self.next_accepted(h, k0, may_pass_end=False)
            self.note(self.t, self.sign * h, self.y)
            self.sizes.append(h)
            y = self.coupling(h) * (y - self.y) + end
            if self.span_left() <= h:
                return Solution(torch.stack((y, self.y)), self.stats(), self.steps)
            k0 = self.follow(h, y)
            h = grown

    def follow(self, h: float, y: Tensor) -> Tensor:
        """Advance z to the end of the step, where y is already; return f there."""
        cost = len(self.method.tableau.c) + 1
        if self.evaluations + cost > self.problem.max_nfe:
            raise self.error(h, f"max_nfe = {self.problem.max_nfe} evaluations were not enough")
        self.evaluations += cost
        self.t += self.sign * h
        self.note(self.t, -self.sign * h, y)
        self.y = self.y + y - self.method.advance(self.problem.field, self.t, -self.sign * h, y)
        return evaluate(self.problem.field, self.t, self.y)

    def note(self, t: float, h: float, state: Tensor) -> None:
        """Record a step of Phi."""
        if self.problem.record is not None:
            self.steps.append(self.problem.record(Step(t, h, state)))
