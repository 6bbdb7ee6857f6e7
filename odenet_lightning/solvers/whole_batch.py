"""Steps under error control with one step size for the whole batch.

An attempted step costs one device-to-host synchronisation, for the error ratio.
"""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from odenet_lightning.solvers.evaluation import evaluate, host_value
from odenet_lightning.solvers.first_step import guess_first_step
from odenet_lightning.solvers.problem import Problem, Solution, SolverError, SolveStats, Step, rms_norm
from odenet_lightning.solvers.runge_kutta import fused_step, plan_of
from odenet_lightning.solvers.stopping import NOT_FINITE, TOO_SMALL, smallest_step, stopped

if TYPE_CHECKING:
    from odenet_lightning.solvers.adaptive import AdaptiveRungeKutta


class AdaptiveSolve:
    """The state of one adaptive solve: its time and state, its cost so far, and its step sizes."""

    def __init__(self, method: "AdaptiveRungeKutta", problem: Problem) -> None:
        self.method, self.problem = method, problem
        self.t, self.t1, self.y = problem.t0, problem.t1, problem.y0
        self.sign = 1.0 if self.t1 > self.t else -1.0
        self.span = abs(self.t1 - self.t)
        self.min_step = smallest_step(self.y, self.t, self.t1)
        self.evaluations = self.rejected = 0
        self.sizes: list[float] = []
        self.steps: list[Step] = []
        self.next_step: float | None = None
        self.needs_no_stages = False

    def run(self) -> Solution:
        """Step until t1 is reached or passed."""
        record = self.problem.record
        k0, h, may_pass_end = self.begin()
        # stages are needed to interpolate within a last step that passes t1, and by `Problem.observe`
        self.needs_no_stages = not may_pass_end and self.problem.observe is None
        while True:
            h, is_cut, y1, ks, grown = self.next_accepted(h, k0, may_pass_end)
            left = self.span_left()
            fraction = 1.0 if is_cut or left >= h else left / h
            step = Step(self.t, self.sign * h, self.y, fraction)
            if record is not None:
                self.steps.append(record(step))
            if self.problem.observe is not None:
                self.problem.observe(step, y1, ks)
            self.sizes.append(h)
            if is_cut or left <= h:
                y = y1 if fraction == 1.0 else self.method.interpolate(self.y, y1, ks, step.h, fraction)
                if len(ks) < len(self.method.tableau.c):  # from a kernel, which keeps y1: a later layer may change it
                    y = y.clone()
                return Solution(y, self.stats(), self.steps)
            self.t, self.y, k0, h = self.t + self.sign * h, y1, ks[-1], grown

    def begin(self) -> tuple[Tensor, float, bool]:
        """f(t0, y0), the first step to try, and whether steps may pass t1, as in torchdiffeq: where it was guessed."""
        k0 = evaluate(self.problem.field, self.t, self.y)
        self.evaluations += 1
        first = self.problem.warm_step if self.method.first_step == "warm" else self.method.first_step
        if isinstance(first, float | int):
            return k0, min(float(first), self.span), False
        h = host_value(guess_first_step(self.method, self.problem, k0, self.problem.norm))
        self.evaluations += 1
        if not math.isfinite(h):
            raise self.error(h, NOT_FINITE)
        return k0, h, True

    def next_accepted(
        self, h: float, k0: Tensor, may_pass_end: bool
    ) -> tuple[float, bool, Tensor, list[Tensor], float]:
        """Try steps until one is accepted: its size, whether it was cut, its end and stages, and the next size."""
        while True:
            h, is_cut = (h, False) if may_pass_end else self.cut(h)
            y1, ks, ratio = self.attempt(h, k0)
            grown = h * (self.method.step_factor(ratio) if math.isfinite(ratio) else self.method.min_factor)
            if ratio <= 1.0:
                if not self.sizes:
                    self.next_step = min(grown, self.span)
                return h, is_cut, y1, ks, grown
            self.rejected += 1
            h = grown

    def span_left(self) -> float:
        """Length of the interval still ahead."""
        return self.sign * (self.t1 - self.t)

    def cut(self, h: float) -> tuple[float, bool]:
        """Have a step end at t1 that would pass it or nearly reach it; its size, and whether it was changed so."""
        left = self.span_left()
        return (left, left < self.span) if 1.01 * h >= left else (h, False)

    def attempt(self, h: float, k0: Tensor) -> tuple[Tensor, list[Tensor], float]:
        """Try a step of size h: the new state, its stages and the error ratio."""
        method, signed = self.method, self.sign * h
        if h <= self.min_step:
            raise self.error(h, TOO_SMALL)
        if len(self.sizes) + self.rejected >= method.max_steps:
            raise self.error(h, f"max_steps = {method.max_steps} steps were not enough")
        cost = len(method.tableau.c)
        if self.evaluations + cost > self.problem.max_nfe:
            raise self.error(h, f"max_nfe = {self.problem.max_nfe} evaluations were not enough")
        y1, ks, ratio = self.take(signed, k0)
        self.evaluations += cost
        if not math.isfinite(ratio) and not math.isfinite(host_value(k0.detach().abs().max())):
            raise self.error(h, NOT_FINITE)
        return y1, ks, ratio

    def take(self, h: float, k0: Tensor) -> tuple[Tensor, list[Tensor], float]:
        """Take the step: the new state, its stages (a kernel gives the last one only) and the error ratio."""
        method, problem = self.method, self.problem
        if self.needs_no_stages and problem.norm is rms_norm:
            tolerance = (method.rtol, method.atol)
            fused = fused_step(problem.field, plan_of(method.tableau, True), h, self.y, k0, tolerance)
            if fused is not None and fused.k_last is not None:
                return fused.y1, [fused.k_last], fused.error_ratio
        y1, ks = method.step(problem.field, self.t, h, self.y, k0, with_end=True)
        return y1, ks, host_value(method.error_ratio(self.y, y1, ks, h, problem.norm))

    def stats(self) -> SolveStats:
        """The cost of the finished solve."""
        return SolveStats(
            self.evaluations, len(self.sizes), self.rejected, min(self.sizes), self.sizes[-1], self.next_step
        )

    def error(self, h: float, what: str) -> SolverError:
        """Where the solve has stopped, and why; see `stopped`."""
        method = self.method
        tolerances = (method.rtol, method.atol)
        return stopped(type(method).__name__, tolerances, (self.t, h), self.y, self.evaluations, what)
