"""Steps under error control: the controller, the first step, and the state of one adaptive solve.

An adaptive solve needs one device-to-host synchronisation per attempted step, for the error that decides.

Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed. 1993, II.4.
"""

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from odenet_lightning.solvers.base import Solver
from odenet_lightning.solvers.evaluation import evaluate, host_value
from odenet_lightning.solvers.problem import Norm, Problem, Solution, SolverError, SolveStats, Step, rms_norm
from odenet_lightning.solvers.runge_kutta import RungeKutta, add_weighted, check_grid, fused_step, grid_size, plan_of
from odenet_lightning.solvers.settings import check_positive_number


class AdaptiveRungeKutta(RungeKutta):
    """A Runge-Kutta method with an embedded error estimate: adaptive, or in fixed steps where steps are given.

    A step is accepted where norm(error / (atol + rtol max(|y|, |y_new|))) <= 1, the mean being over
    the whole batch; the next step is h * clip(safety / ratio^(1/order), lowest, max_factor), where
    lowest is 1 after an accepted step and min_factor after a rejected one. So the steps, and with them
    the result for one image, depend on the other images of the batch, by as much as the tolerance allows.

    With `first_step="heuristic"` every choice is torchdiffeq's (Hairer's guess, which costs one
    evaluation and is cautious at loose tolerances; the last step may pass t1, whose state is then
    interpolated). With a number or "warm" the last step is cut to end at t1. Error control is in
    force in all three: a first step that is too large is rejected.
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
    ) -> None:
        """Adaptive, unless one of the last two is given.

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
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, not {max_steps!r}")
        self.num_steps, self.step_size = num_steps, step_size
        self.rtol, self.atol, self.first_step = rtol, atol, first_step
        self.safety, self.min_factor, self.max_factor = safety, min_factor, max_factor
        self.max_steps = max_steps

    @property
    def controls_error(self) -> bool:
        """Not where steps were given, which switches error control off."""
        return self.num_steps is None and self.step_size is None

    def with_tolerance(self, rtol: float | None, atol: float | None) -> Solver:
        """Return a copy with those tolerances replaced that are not None."""
        if not self.controls_error:
            return super().with_tolerance(rtol, atol)
        twin = copy.copy(self)
        twin.rtol = self.rtol if rtol is None else rtol
        twin.atol = self.atol if atol is None else atol
        return twin

    def steps_over(self, span: float) -> int | None:
        """See `Solver.steps_over`."""
        return None if self.controls_error else grid_size(self.num_steps, self.step_size, span)

    def integrate(self, problem: Problem) -> Solution:
        """Step under error control; evaluations: 1 or 2, plus s per attempted step, s being the number of stages."""
        steps = self.steps_over(problem.t1 - problem.t0)
        return AdaptiveSolve(self, problem).run() if steps is None else self.take_equal_steps(problem, steps)

    def scaled_error(self, y: Tensor, y1: Tensor, ks: Sequence[Tensor], h: float) -> Tensor:
        """The error estimate of a step over its tolerance, in the state's shape."""
        assert self.tableau.error is not None
        weights = self.tableau.error
        error = add_weighted(ks[0] * (weights[0] * h), ks[1:], weights[1:], h)
        scale = torch.maximum(y.abs(), y1.abs()).mul_(self.rtol).add_(self.atol)
        return error.div_(scale)

    def error_ratio(self, y: Tensor, y1: Tensor, ks: Sequence[Tensor], h: float, norm: Norm) -> float:
        """norm(error / tolerance) of a step, with one device-to-host synchronisation."""
        with torch.no_grad():
            return host_value(norm(self.scaled_error(y, y1, ks, h)))

    def step_factor(self, ratio: float) -> float:
        """How much larger the next step may be, given this one's error ratio."""
        if ratio == 0.0:
            return self.max_factor
        lowest = 1.0 if ratio < 1.0 else self.min_factor
        return min(self.max_factor, max(self.safety / ratio ** (1 / self.tableau.order), lowest))

    def guess_first_step(self, problem: Problem, f0: Tensor) -> float:
        """Hairer's first step (Hairer et al. 1993, II.4), as torchdiffeq computes it; one evaluation, one sync."""
        y0, t0, norm = problem.y0, problem.t0, problem.norm
        sign = 1.0 if problem.t1 > t0 else -1.0
        with torch.no_grad():
            scale = self.atol + y0.abs() * self.rtol
            d0, d1 = norm(y0 / scale), norm(f0 / scale)
            h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
            f1 = evaluate(problem.field, t0 + sign * h0, y0 + sign * h0 * f0)
            d2 = norm((f1 - f0) / scale) / h0
            steepest = torch.maximum(d1, d2)
            h1 = torch.where(
                steepest <= 1e-15,
                torch.maximum(torch.full_like(h0, 1e-6), h0 * 1e-3),
                (0.01 / steepest) ** (1 / self.tableau.order),
            )
            return host_value(torch.minimum(100 * h0, h1))


NOT_FINITE = "the state or the field is NaN or infinite"


class AdaptiveSolve:
    """The state of one adaptive solve: where it is, what it has cost, what it would try next."""

    def __init__(self, method: AdaptiveRungeKutta, problem: Problem) -> None:
        self.method, self.problem = method, problem
        self.t, self.t1, self.y = problem.t0, problem.t1, problem.y0
        self.sign = 1.0 if self.t1 > self.t else -1.0
        self.span = abs(self.t1 - self.t)
        # below this a step no longer changes the time that the field is given
        self.min_step = torch.finfo(self.y.dtype).eps * max(abs(self.t), abs(self.t1))
        self.evaluations = self.rejected = 0
        self.sizes: list[float] = []
        self.steps: list[Step] = []
        self.next_step: float | None = None
        self.needs_no_stages = False

    def run(self) -> Solution:
        """Step until t1 is reached or passed."""
        record = self.problem.record
        k0, h, may_pass_end = self.begin()
        # they are for the state within a last step that passes the end, and for whoever observes the steps
        self.needs_no_stages = not may_pass_end and self.problem.observe is None
        while True:
            h, is_cut = (h, False) if may_pass_end else self.cut(h)
            y1, ks, ratio = self.attempt(h, k0)
            grown = h * self.method.step_factor(ratio) if math.isfinite(ratio) else h * self.method.min_factor
            if not ratio <= 1.0:
                self.rejected += 1
                h = grown
                continue
            if not self.sizes:
                self.next_step = min(grown, self.span)
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
        """f(t0, y0), the first step to try, and whether that was guessed as torchdiffeq does."""
        k0 = evaluate(self.problem.field, self.t, self.y)
        self.evaluations += 1
        first = self.problem.warm_step if self.method.first_step == "warm" else self.method.first_step
        if isinstance(first, float | int):
            return k0, min(float(first), self.span), False
        h = self.method.guess_first_step(self.problem, k0)
        self.evaluations += 1
        if not math.isfinite(h):
            raise self.error(h, NOT_FINITE)
        return k0, h, True

    def span_left(self) -> float:
        """Length of the interval still ahead."""
        return self.sign * (self.t1 - self.t)

    def cut(self, h: float) -> tuple[float, bool]:
        """End the step at t1 where it would pass it, or stop a hair short of it."""
        left = self.span_left()
        return (left, left < self.span) if 1.01 * h >= left else (h, False)

    def attempt(self, h: float, k0: Tensor) -> tuple[Tensor, list[Tensor], float]:
        """Try a step of size h: the new state, its stages and the error ratio."""
        method, signed = self.method, self.sign * h
        if h <= self.min_step:
            raise self.error(h, "the step has become too small to change t")
        if len(self.sizes) + self.rejected >= method.max_steps:
            raise self.error(h, f"max_steps = {method.max_steps} steps were not enough", "a larger max_steps")
        cost = len(method.tableau.c)
        if self.evaluations + cost > self.problem.max_nfe:
            raise self.error(h, f"max_nfe = {self.problem.max_nfe} evaluations were not enough", "a larger max_nfe")
        y1, ks, ratio = self.take(signed, k0)
        self.evaluations += cost
        if not math.isfinite(ratio) and not math.isfinite(host_value(k0.detach().abs().max())):
            raise self.error(h, NOT_FINITE)
        return y1, ks, ratio

    def take(self, h: float, k0: Tensor) -> tuple[Tensor, list[Tensor], float]:
        """The step itself; where a kernel takes it, the last one of its stages is all that is known of them."""
        method, problem = self.method, self.problem
        if self.needs_no_stages and problem.norm is rms_norm:
            tolerance = (method.rtol, method.atol)
            fused = fused_step(problem.field, plan_of(method.tableau, True), h, self.y, k0, tolerance)
            if fused is not None and fused.k_last is not None:
                return fused.y1, [fused.k_last], fused.error_ratio
        y1, ks = method.step(problem.field, self.t, h, self.y, k0, with_end=True)
        return y1, ks, method.error_ratio(self.y, y1, ks, h, problem.norm)

    def stats(self) -> SolveStats:
        """The cost of a solve that is done."""
        return SolveStats(
            self.evaluations, len(self.sizes), self.rejected, min(self.sizes), self.sizes[-1], self.next_step
        )

    def error(self, h: float, what: str, remedy: str = "") -> SolverError:
        """Where the solve stopped, why, and what to try: of causes that any caller can change."""
        size = host_value(rms_norm(self.y.detach()))
        remedies = [remedy] if remedy else []
        if what != NOT_FINITE:
            remedies.append("looser tolerances")
        return SolverError(
            f"{type(self.method).__name__} stopped at t = {self.t:.6g} with h = {h:.3g}: {what} (rtol = "
            f"{self.method.rtol:g}, atol = {self.method.atol:g}, rms of the state {size:.3g}, {self.evaluations} "
            f"evaluations so far); try {', '.join(remedies)}{' or ' if remedies else ''}a fixed step"
        )
