"""Solvers of dy/dt = f(t, y), y(t0) = y0: explicit Runge-Kutta methods and torchdiffeq's.

A method is a table of coefficients (`Tableau`); two stepping loops, fixed and adaptive, run any of
them. A solve returns its statistics as values and keeps nothing. Times and step sizes are Python
floats, so a fixed-step solve never waits for the device, and an adaptive one waits once an
attempted step (for the error that decides).

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed. 1993
(methods, step control, first step); Dormand and Prince 1980; Bogacki and Shampine 1989;
Tsitouras 2011; Shampine 1986 (Dormand-Prince's value at half a step).
"""

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torchdiffeq
from torch import Tensor, nn

VectorField = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]

# A solve that needs more evaluations than this has exploded; ten thousand are minutes, not hours.
MAX_NFE = 10_000


class SolverError(RuntimeError):
    """A solve could not be finished: the step underflowed, the state is not finite, or a limit was hit."""


@dataclass(frozen=True)
class SolveStats:
    """What a solve cost.

    Attributes:
        evaluations: evaluations of the field (NFE).
        accepted: steps taken.
        rejected: steps tried and thrown away, their error being too large.
        smallest_step: size of the smallest accepted step, in units of t.
        last_step: size of the last accepted step, in units of t.
        next_step: the first step to try in a solve like this one, in units of t: what the
            controller made of this solve's first step. None where no controller runs.
    """

    evaluations: int
    accepted: int
    rejected: int
    smallest_step: float
    last_step: float
    next_step: float | None = None


@dataclass(frozen=True)
class Step:
    """One accepted step, from which `Solver.replay` gives the state at t + fraction * h.

    Attributes:
        t: start time.
        h: step size, negative when integrating backwards.
        y: state at t.
        fraction: how far into the step the wanted state lies, in (0, 1].
    """

    t: float
    h: float
    y: Tensor
    fraction: float = 1.0


@dataclass(frozen=True)
class Solution:
    """A solve's result: the state `y` at t1, its cost, and the accepted steps where asked for."""

    y: Tensor
    stats: SolveStats
    steps: Sequence[Step] = field(default=())


def rms_norm(x: Tensor) -> Tensor:
    """Root of the mean square, the norm in which an error is held against its tolerance."""
    flat = x.reshape(-1)
    return (torch.dot(flat, flat) / flat.numel()).sqrt()  # no copy, and vector_norm is off by 4e-6 in float32


class Solver(ABC):
    """A way to solve dy/dt = f(t, y) over [t0, t1], forwards or (t1 < t0) backwards."""

    @abstractmethod
    def solve(
        self,
        field: VectorField,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        norm: Norm = rms_norm,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
        record: bool = False,
    ) -> Solution:
        """Solve the initial value problem.

        Args:
            field: f(t, y), with t a scalar tensor of y's dtype and device.
            y0: state at t0, a tensor of any shape, float32 or float64.
            t0: start of the interval.
            t1: end of the interval.
            norm: maps error / tolerance to a scalar tensor; a step is accepted where it is <= 1.
            warm_step: first step of an adaptive solver whose `first_step` is "warm".
            max_nfe: most evaluations of the field before `SolverError`.
            record: whether to return the accepted steps (`Solution.steps`).

        Raises:
            SolverError: the solve cannot be finished; the message says where it stopped.
        """

    @abstractmethod
    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Do an accepted step again, differentiably; gives y at `step.t + step.fraction * step.h`."""

    def compile(self, field: nn.Module) -> None:
        """Have torch.compile do what pays, in place; by default the field alone."""
        field.compile()

    def eager(self) -> "Solver":
        """Return the same solver, uncompiled."""
        return self

    def with_tolerance(self, rtol: float | None, atol: float | None) -> "Solver":
        """Return the same solver, uncompiled, with those tolerances replaced that are not None."""
        del rtol, atol
        return self.eager()

    def trajectory(
        self, field: VectorField, y0: Tensor, times: Sequence[float], warm_step: float | None = None
    ) -> Tensor:
        """Dense output: the states at the given times, `[T, *y0.shape]`.

        Runs one solve over [times[0], times[-1]] as training does and interpolates within its
        steps. Costs the solve once more: meant for pictures.

        Args:
            field: f(t, y).
            y0: state at times[0].
            times: T strictly increasing or decreasing times, T >= 2.
            warm_step: see `solve`.
        """
        solver = self.eager()
        steps = solver.solve(field, y0, times[0], times[-1], warm_step=warm_step, record=True).steps
        states = [y0]
        for time in times[1:]:
            # the first step whose end is not short of `time` (a hair of slack for rounding)
            step = next((s for s in steps if (time - s.t) / s.h <= s.fraction + 1e-9), steps[-1])
            fraction = min((time - step.t) / step.h, 1.0)
            states.append(solver.replay(field, Step(step.t, step.h, step.y, fraction)))
        return torch.stack(states)


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


def evaluate(field: VectorField, t: float | Tensor, y: Tensor) -> Tensor:
    """f(t, y) in the state's own precision: under autocast a field answers in 16 bits, the state must not."""
    time = t if isinstance(t, Tensor) else torch.full((), t, dtype=y.dtype, device=y.device)
    return field(time, y).to(y.dtype)


def add_weighted(y: Tensor, ks: Sequence[Tensor], weights: Sequence[float], h: float) -> Tensor:
    """The sum y + h sum_i weights_i k_i: one pass over memory a non-zero weight, one new tensor in all."""
    total = y
    for k, weight in zip(ks, weights, strict=False):
        if weight != 0.0:
            total = torch.add(y, k, alpha=weight * h) if total is y else total.add_(k, alpha=weight * h)
    return total


def take_step(
    field: VectorField, tableau: Tableau, t: Tensor, h: Tensor, y: Tensor, k0: Tensor | None, with_end: bool
) -> tuple[Tensor, list[Tensor]]:
    """One step with t and h as scalar tensors: the form that compiles once for every step size."""
    ks = [evaluate(field, t, y) if k0 is None else k0]
    for row, c in zip(tableau.a, tableau.c[1:], strict=True):
        ks.append(evaluate(field, t + c * h, y + h * weighted_sum(ks, row)))
    y1 = y + h * weighted_sum(ks, tableau.b)
    if with_end:
        ks.append(evaluate(field, t + h, y1))
    return y1, ks


def weighted_sum(ks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i weights_i k_i, which a compiler fuses into one pass."""
    terms = [weight * k for k, weight in zip(ks, weights, strict=False) if weight != 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class RungeKutta(Solver):
    """What all explicit Runge-Kutta methods share: one step, its replay, the fixed-step loop.

    Args:
        num_steps: number of equal steps over the interval.
        step_size: largest step, in units of t; the interval is cut into equal steps no larger.
    """

    tableau: Tableau

    def __init__(self, num_steps: int | None = None, step_size: float | None = None) -> None:
        if num_steps is None and step_size is None and not isinstance(self, AdaptiveRungeKutta):
            raise ValueError(f"{type(self).__name__} takes fixed steps: give num_steps or step_size")
        if num_steps is not None and step_size is not None:
            raise ValueError(f"{type(self).__name__} takes num_steps or step_size, not both")
        if num_steps is not None and (type(num_steps) is not int or num_steps < 1):
            raise ValueError(f"num_steps must be a whole number of at least 1, not {num_steps!r}")
        if step_size is not None and not 0.0 < step_size < math.inf:
            raise ValueError(f"step_size must be a positive number, not {step_size!r}")
        self.num_steps = num_steps
        self.step_size = step_size
        self._step: Callable[..., tuple[Tensor, list[Tensor]]] | None = None
        self._evaluate: Callable[..., Tensor] = evaluate

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if v is not None and k[0] != "_")
        return f"{type(self).__name__}({shown})"

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets, in this process or another: all but what is compiled."""
        return {**vars(self), "_step": None, "_evaluate": evaluate}

    def compile(self, field: nn.Module) -> None:
        """Compile the step, field included: one graph for all step sizes, one more for each size of batch."""
        self._step = torch.compile(take_step)
        self._evaluate = torch.compile(evaluate)

    def eager(self) -> Solver:
        """Return a copy, which runs uncompiled."""
        return copy.copy(self)

    def step(
        self, field: VectorField, t: float, h: float, y: Tensor, k0: Tensor | None = None, with_end: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """One step of size h from y(t).

        Args:
            field: f(t, y).
            t: start time.
            h: step size.
            y: state at t.
            k0: f(t, y), where known.
            with_end: whether the stages are to end with f(t + h, y(t + h)).

        Returns:
            The state at t + h and the stages.
        """
        if self._step is not None:
            time, size = (torch.full((), value, dtype=y.dtype, device=y.device) for value in (t, h))
            return self._step(field, self.tableau, time, size, y, k0, with_end)
        ks = [evaluate(field, t, y) if k0 is None else k0]
        for row, c in zip(self.tableau.a, self.tableau.c[1:], strict=True):
            ks.append(evaluate(field, t + c * h, add_weighted(y, ks, row, h)))
        y1 = add_weighted(y, ks, self.tableau.b, h)
        if with_end:
            ks.append(evaluate(field, t + h, y1))
        return y1, ks

    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Do an accepted step again; inside the step, by the method's dense output."""
        t, h, y = step.t, step.h, step.y
        if step.fraction == 1.0:
            return self.step(field, t, h, y)[0]
        y1, ks = self.step(field, t, h, y, with_end=True)
        return self.interpolate(y, y1, ks, h, step.fraction)

    def interpolate(self, y: Tensor, y1: Tensor, ks: Sequence[Tensor], h: float, x: float) -> Tensor:
        """State at x in [0, 1] of a step, by the quartic (or cubic) through its ends, slopes and middle."""
        f0, f1, mid = ks[0], ks[-1], self.tableau.mid
        weights = [1 - 3 * x**2 + 2 * x**3, 3 * x**2 - 2 * x**3]  # cubic Hermite, of y and y1
        slopes = [x * (1 - x) ** 2, -(x**2) * (1 - x)]  # of h f0 and h f1
        if mid is None:
            return weights[0] * y + weights[1] * y1 + h * (slopes[0] * f0 + slopes[1] * f1)
        bump = 16 * x**2 * (1 - x) ** 2  # 1 at the middle; 0, with its slope, at both ends
        y_mid = add_weighted(y, ks, mid, h)
        cubic_mid = 0.5 * (y + y1) + (h / 8) * (f0 - f1)
        cubic = weights[0] * y + weights[1] * y1 + h * (slopes[0] * f0 + slopes[1] * f1)
        return cubic + bump * (y_mid - cubic_mid)

    def grid_size(self, span: float) -> int:
        """Number of equal steps over an interval of length |span|."""
        if self.num_steps is not None:
            return self.num_steps
        assert self.step_size is not None
        return max(1, math.ceil(abs(span) / self.step_size - 1e-9))

    def solve(
        self,
        field: VectorField,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        norm: Norm = rms_norm,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
        record: bool = False,
    ) -> Solution:
        """Take equal steps; see `Solver.solve`. Evaluations: num_steps times the number of stages."""
        del norm, warm_step
        n = self.grid_size(t1 - t0)
        evaluations = n * len(self.tableau.c)
        if evaluations > max_nfe:
            raise SolverError(
                f"{self!r} needs {evaluations} evaluations, more than max_nfe = {max_nfe}: "
                "take fewer steps or raise max_nfe"
            )
        h = (t1 - t0) / n
        y, steps = y0, []
        for i in range(n):
            t = t0 + i * h
            if record:
                steps.append(Step(t, h, y))
            y, _ = self.step(field, t, h, y)
        return Solution(y, SolveStats(evaluations, n, 0, abs(h), abs(h)), steps)


class AdaptiveRungeKutta(RungeKutta):
    """A Runge-Kutta method with an embedded error estimate: adaptive, or fixed where steps are given.

    A step is accepted where norm(error / (atol + rtol max(|y|, |y_new|))) <= 1, the mean being over
    the whole batch; the next step is h * clip(safety / ratio^(1/order), min_factor, max_factor).

    With `first_step="heuristic"` every choice is torchdiffeq's (Hairer's guess, which costs one
    evaluation and is cautious at loose tolerances; the last step may pass t1, whose state is then
    interpolated). With a number or "warm" the last step is cut to end at t1. Error control is in
    force in all three: a first step that is too large is rejected.

    Args:
        rtol: relative tolerance, not used with fixed steps.
        atol: absolute tolerance, not used with fixed steps.
        first_step: "heuristic"; a positive number; or "warm", what the controller made of the first
            step of this block's last training solve: carried by `ODEBlock`, frozen in evaluation.
        safety: factor on the step the error allows.
        min_factor: strongest shrinking after a rejected step.
        max_factor: strongest growth after an accepted one.
        max_steps: attempted steps before `SolverError`.
        num_steps: take this many equal steps instead, without error control.
        step_size: take equal steps no larger than this instead, without error control.
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
        super().__init__(num_steps, step_size)
        check_tolerances(rtol, atol)
        if isinstance(first_step, str):
            if first_step not in ("heuristic", "warm"):
                raise ValueError(f'first_step must be "heuristic", "warm" or a positive number, not {first_step!r}')
        elif not 0.0 < first_step < math.inf:
            raise ValueError(f"first_step must be positive, not {first_step!r}")
        if not 0.0 < safety < 1.0 or not 0.0 < min_factor < 1.0 < max_factor:
            raise ValueError("safety and min_factor must lie in (0, 1), max_factor above 1")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, not {max_steps!r}")
        self.rtol, self.atol, self.first_step = rtol, atol, first_step
        self.safety, self.min_factor, self.max_factor = safety, min_factor, max_factor
        self.max_steps = max_steps

    @property
    def is_fixed(self) -> bool:
        """Whether steps were given, which switches error control off."""
        return self.num_steps is not None or self.step_size is not None

    def with_tolerance(self, rtol: float | None, atol: float | None) -> Solver:
        """Return a copy, uncompiled, with those tolerances replaced that are not None."""
        twin = copy.copy(self)
        twin.rtol = self.rtol if rtol is None else rtol
        twin.atol = self.atol if atol is None else atol
        return twin

    def solve(
        self,
        field: VectorField,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        norm: Norm = rms_norm,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
        record: bool = False,
    ) -> Solution:
        """Step under error control; see `Solver.solve`. Evaluations: 1 or 2, plus s - 1 an attempted step."""
        if self.is_fixed:
            return super().solve(field, y0, t0, t1, max_nfe=max_nfe, record=record)
        return _AdaptiveSolve(self, field, y0, t0, t1, norm, max_nfe).run(warm_step, record)

    def error_ratio(self, y: Tensor, y1: Tensor, ks: Sequence[Tensor], h: float, norm: Norm) -> float:
        """norm(error / tolerance) of a step: the one value that the host waits for."""
        assert self.tableau.error is not None
        with torch.no_grad():
            weights = self.tableau.error
            error = add_weighted(ks[0] * (weights[0] * h), ks[1:], weights[1:], h)
            scale = y.abs()
            torch.maximum(scale, y1.abs(), out=scale).mul_(self.rtol).add_(self.atol)
            return float(norm(error.div_(scale)))

    def step_factor(self, ratio: float) -> float:
        """How much larger the next step may be, given this one's error ratio."""
        if ratio == 0.0:
            return self.max_factor
        lowest = 1.0 if ratio < 1.0 else self.min_factor
        return min(self.max_factor, max(self.safety / ratio ** (1 / self.tableau.order), lowest))

    def guess_first_step(self, field: VectorField, t0: float, y0: Tensor, f0: Tensor, sign: float, norm: Norm) -> float:
        """Hairer's first step (Hairer et al. 1993, II.4), as torchdiffeq computes it; one evaluation, one wait."""
        with torch.no_grad():
            scale = self.atol + y0.abs() * self.rtol
            d0, d1 = norm(y0 / scale), norm(f0 / scale)
            h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
            f1 = evaluate(field, t0 + sign * h0, y0 + sign * h0 * f0)
            d2 = norm((f1 - f0) / scale) / h0
            steepest = torch.maximum(d1, d2)
            h1 = torch.where(
                steepest <= 1e-15,
                torch.maximum(torch.full_like(h0, 1e-6), h0 * 1e-3),
                (0.01 / steepest) ** (1 / self.tableau.order),
            )
            return float(torch.minimum(100 * h0, h1))


class _AdaptiveSolve:
    """The state of one adaptive solve: where it is, what it has cost, what it would try next."""

    def __init__(
        self,
        method: AdaptiveRungeKutta,
        field: VectorField,
        y0: Tensor,
        t0: float,
        t1: float,
        norm: Norm,
        max_nfe: int,
    ) -> None:
        self.method, self.field, self.norm, self.max_nfe = method, field, norm, max_nfe
        self.t, self.t1, self.y = t0, t1, y0
        self.sign = 1.0 if t1 >= t0 else -1.0
        self.span = abs(t1 - t0)
        # below this a step no longer changes the time that the field is given
        self.min_step = torch.finfo(y0.dtype).eps * max(abs(t0), abs(t1))
        self.evaluations = self.rejected = 0
        self.sizes: list[float] = []
        self.steps: list[Step] = []
        self.next_step: float | None = None

    def run(self, warm_step: float | None, record: bool) -> Solution:
        """Step until t1 is reached or passed."""
        if self.span == 0.0:
            return Solution(self.y, SolveStats(0, 0, 0, 0.0, 0.0), ())
        # evaluated apart from the first step, so that a compiled step always has it given: one graph
        time = torch.full((), self.t, dtype=self.y.dtype, device=self.y.device)
        k0 = self.method._evaluate(self.field, time, self.y)
        self.evaluations += 1
        first = warm_step if self.method.first_step == "warm" else self.method.first_step
        may_pass_end = not isinstance(first, float | int)
        if may_pass_end:
            h = self.method.guess_first_step(self.field, self.t, self.y, k0, self.sign, self.norm)
            self.evaluations += 1
            if not math.isfinite(h):
                raise self.error(h, "the state or the field is not finite (NaN or infinity)")
        else:
            h = min(float(first), self.span)
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
            if record:
                self.steps.append(step)
            self.sizes.append(h)
            if is_cut or left <= h:
                y = y1 if fraction == 1.0 else self.method.interpolate(self.y, y1, ks, step.h, fraction)
                return Solution(y, self.stats(), self.steps)
            self.t, self.y, k0, h = self.t + self.sign * h, y1, ks[-1], grown

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
            raise self.error(h, f"max_steps = {method.max_steps} steps were not enough")
        cost = len(method.tableau.c)
        if self.evaluations + cost > self.max_nfe:
            raise self.error(h, f"max_nfe = {self.max_nfe} evaluations were not enough")
        y1, ks = method.step(self.field, self.t, signed, self.y, k0, with_end=True)
        self.evaluations += cost
        ratio = method.error_ratio(self.y, y1, ks, signed, self.norm)
        if not math.isfinite(ratio) and not bool(torch.isfinite(k0).all()):
            raise self.error(h, "the state or the field is not finite (NaN or infinity)")
        return y1, ks, ratio

    def stats(self) -> SolveStats:
        return SolveStats(
            self.evaluations, len(self.sizes), self.rejected, min(self.sizes), self.sizes[-1], self.next_step
        )

    def error(self, h: float, what: str) -> SolverError:
        size = float(rms_norm(self.y.detach()))
        return SolverError(
            f"{type(self.method).__name__} stopped at t = {self.t:.6g} with h = {h:.3g}: {what} (rtol = "
            f"{self.method.rtol:g}, atol = {self.method.atol:g}, rms of the state {size:.3g}, {self.evaluations} "
            "evaluations so far); try a smaller learning rate, looser tolerances, gradient clipping or a fixed step"
        )


class Euler(RungeKutta):
    """Euler's method, order 1, one evaluation a step: y + h f(t, y).

    One step of it is a residual block. Not for accuracy: its error falls only with h.

    Args:
        num_steps: number of equal steps over the interval (this or `step_size`).
        step_size: largest step, in units of t.
    """

    tableau = Tableau(order=1, a=(), b=(1.0,), c=(0.0,))


class Midpoint(RungeKutta):
    """The explicit midpoint method, order 2, two evaluations a step: y + h f(t + h/2, y + h/2 f(t, y)).

    The cheapest method here that still is an ODE solve rather than a residual block; a good
    training solver at one to four steps. Not for stiff fields (no explicit method is).

    Args:
        num_steps: number of equal steps over the interval (this or `step_size`).
        step_size: largest step, in units of t.
    """

    tableau = Tableau(order=2, a=((0.5,),), b=(0.0, 1.0), c=(0.0, 0.5))


class Heun(RungeKutta):
    """Heun's method (explicit trapezoid), order 2, two evaluations a step.

    Not better than `Midpoint` in general: same cost and order, another error constant.

    Args:
        num_steps: number of equal steps over the interval (this or `step_size`).
        step_size: largest step, in units of t.
    """

    tableau = Tableau(order=2, a=((1.0,),), b=(0.5, 0.5), c=(0.0, 1.0))


class RK4(RungeKutta):
    """Kutta's classical method (1901), order 4, four evaluations a step.

    torchdiffeq's "rk4" is Kutta's other method (the 3/8 rule): same order, slightly other numbers.

    Args:
        num_steps: number of equal steps over the interval (this or `step_size`).
        step_size: largest step, in units of t.
    """

    tableau = Tableau(
        order=4, a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0.0, 0.5, 0.5, 1.0)
    )


class Bosh3(AdaptiveRungeKutta):
    """Bogacki and Shampine's 3(2) pair (1989), three evaluations an attempted step.

    Good at loose tolerances, 1e-2 and above; below 1e-4 `Dopri5` needs fewer evaluations. Its steps
    are torchdiffeq's "bosh3"; its dense output is the cubic Hermite interpolant instead, since
    torchdiffeq 0.2.5 takes y + h/2 k_2 for the middle of a step, which is wrong by O(h^2).
    """

    __doc__ = f"{__doc__}\n{(AdaptiveRungeKutta.__doc__ or '').split(chr(10), 1)[1]}"
    tableau = Tableau(
        order=3,
        a=((1 / 2,), (0.0, 3 / 4)),
        b=(2 / 9, 1 / 3, 4 / 9),
        c=(0.0, 1 / 2, 3 / 4),
        error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    )


class Dopri5(AdaptiveRungeKutta):
    """Dormand and Prince's 5(4) pair (1980), six evaluations an attempted step; the post's method.

    The all-round choice. Not for stiff fields, nor for float32 below tolerances of about 1e-6,
    where rounding is all that is left of the error estimate.
    """

    __doc__ = f"{__doc__}\n{(AdaptiveRungeKutta.__doc__ or '').split(chr(10), 1)[1]}"
    tableau = Tableau(
        order=5,
        a=(
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        error=(
            35 / 384 - 1951 / 21600,
            0.0,
            500 / 1113 - 22642 / 50085,
            125 / 192 - 451 / 720,
            -2187 / 6784 + 12231 / 42400,
            11 / 84 - 649 / 6300,
            -1 / 60,
        ),
        mid=(
            6025192743 / 30085553152 / 2,
            0.0,
            51252292925 / 65400821598 / 2,
            -2691868925 / 45128329728 / 2,
            187940372067 / 1594534317056 / 2,
            -1776094331 / 19743644256 / 2,
            11237099 / 235043384 / 2,
        ),
    )


class Tsit5(AdaptiveRungeKutta):
    """Tsitouras' 5(4) pair (2011), six evaluations an attempted step.

    A newer `Dopri5` with smaller error constants; the same cautions hold.
    """

    __doc__ = f"{__doc__}\n{(AdaptiveRungeKutta.__doc__ or '').split(chr(10), 1)[1]}"
    tableau = Tableau(
        order=5,
        a=(
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
        c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
        error=(
            0.00178001105222577714,
            0.0008164344596567469,
            -0.007880878010261995,
            0.1447110071732629,
            -0.5823571654525552,
            0.45808210592918697,
            -1 / 66,
        ),
        mid=(
            0.10741235230096871,
            0.01135625,
            0.39560903056045305,
            -0.34475214352593553,
            1.3161853649581645,
            -1.0170608542936508,
            1 / 32,
        ),
    )


# torchdiffeq's methods without error control: they must be given a step, or they silently take one
FIXED_TORCHDIFFEQ_METHODS = frozenset(
    ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
)


class TorchDiffEq(Solver):
    """Any method of the installed torchdiffeq, as the reference and for the post's exact numbers.

    Slower than this file's own methods at these sizes (stages on a strided axis, times as tensors):
    choose it to compare, or for a method that is missing here ("dopri8", "implicit_adams",
    "scipy_solver", ...). It shows no single steps, so `replay` and thus `Checkpoint` redo the whole
    solve.

    Args:
        method: name of one of torchdiffeq's methods.
        rtol: relative tolerance, not used by fixed-step methods.
        atol: absolute tolerance, likewise.
        options: torchdiffeq's options, such as `step_size` (required by fixed-step methods),
            `first_step`, `max_num_steps` (1,000 here unless given).

    Source: R. T. Q. Chen, torchdiffeq, 2018.
    """

    def __init__(
        self, method: str = "dopri5", rtol: float = 1e-3, atol: float = 1e-3, options: dict[str, Any] | None = None
    ) -> None:
        check_tolerances(rtol, atol)
        self.method, self.rtol, self.atol, self.options = method, rtol, atol, dict(options or {})
        step_size = self.options.get("step_size")
        if method in FIXED_TORCHDIFFEQ_METHODS:
            if step_size is None and "grid_constructor" not in self.options:
                raise ValueError(f'torchdiffeq\'s "{method}" takes fixed steps: give options={{"step_size": h}}')
            if step_size is not None and not 0.0 < step_size < math.inf:
                raise ValueError(f"step_size must be a positive number, not {step_size!r}")
        elif self.is_adaptive:
            self.options.setdefault("max_num_steps", 1_000)
        # a solve of y' = 0 finds an unknown method or option now rather than after the first batch
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                probe = self.arguments()
                if self.is_adaptive:
                    probe["options"] = {**self.options, "max_num_steps": 1_000}
                torchdiffeq.odeint(lambda t, y: 0 * y, torch.ones(1), torch.tensor([0.0, 1.0]), **probe)
            except Exception as e:
                raise ValueError(f'torchdiffeq refuses the method "{method}" with options {options}: {e}') from e

    def __repr__(self) -> str:
        return f"TorchDiffEq({self.method!r}, rtol={self.rtol!r}, atol={self.atol!r}, options={self.options!r})"

    @property
    def is_adaptive(self) -> bool:
        """Whether torchdiffeq controls this method's steps itself."""
        return self.method not in FIXED_TORCHDIFFEQ_METHODS | {"scipy_solver"}

    def _counting(self, field: VectorField, max_nfe: int, y0: Tensor) -> "_CountingField":
        return (_CountingSteps if self.is_adaptive else _CountingField)(field, max_nfe, y0)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of torchdiffeq.odeint."""
        return {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": self.options}

    def with_tolerance(self, rtol: float | None, atol: float | None) -> Solver:
        """Return a copy with the tolerances that are not None replaced."""
        twin = copy.copy(self)
        twin.rtol = self.rtol if rtol is None else rtol
        twin.atol = self.atol if atol is None else atol
        return twin

    def solve(
        self,
        field: VectorField,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        norm: Norm | None = None,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
        record: bool = False,
    ) -> Solution:
        """Call torchdiffeq.odeint; see `Solver.solve`. A recorded solve is one step, replayed whole."""
        del warm_step
        if t0 == t1:
            return Solution(y0, SolveStats(0, 0, 0, 0.0, 0.0))
        arguments = self.arguments()
        if self.method == "scipy_solver" and torch.is_grad_enabled():
            raise ValueError("scipy computes outside of torch, so its steps have no gradient: use Adjoint")
        if norm is not None and self.is_adaptive:
            arguments["options"] = {**self.options, "norm": norm}
        counter = self._counting(field, max_nfe, y0)
        times = torch.tensor([t0, t1], dtype=y0.dtype, device=y0.device)
        try:
            states = torchdiffeq.odeint(counter, y0, times, **arguments)
        except AssertionError as e:  # torchdiffeq asserts against underflow, NaN and its step limit
            raise SolverError(
                f"{self!r} stopped after {counter.evaluations} evaluations: {str(e)[:80]}; "
                "try a smaller learning rate, looser tolerances, gradient clipping or a fixed step"
            ) from e
        assert isinstance(states, Tensor)
        return Solution(
            states[1],
            counter.stats(abs(t1 - t0), self.options.get("step_size")),
            [Step(t0, t1 - t0, y0)] if record else (),
        )

    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Solve over the step's interval again, differentiably."""
        return self.solve(field, step.y, step.t, step.t + step.fraction * step.h).y

    def trajectory(
        self, field: VectorField, y0: Tensor, times: Sequence[float], warm_step: float | None = None
    ) -> Tensor:
        """States at the given times by torchdiffeq's own interpolation, `[T, *y0.shape]`."""
        del warm_step
        grid = torch.tensor(times, dtype=y0.dtype, device=y0.device)
        states = torchdiffeq.odeint(self._counting(field, MAX_NFE, y0), y0, grid, **self.arguments())
        assert isinstance(states, Tensor)
        return states


class _CountingField:
    """A field as torchdiffeq wants it, counting evaluations."""

    def __init__(self, field: VectorField, max_nfe: int, y0: Tensor) -> None:
        self.field, self.max_nfe, self.dtype = field, max_nfe, y0.dtype
        self.evaluations = self.rejected = 0
        self.sizes: list[Tensor] = []

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if self.evaluations >= self.max_nfe:
            raise SolverError(
                f"torchdiffeq needed more than max_nfe = {self.max_nfe} evaluations: try looser tolerances"
            )
        self.evaluations += 1
        return evaluate(self.field, t, y)

    def stats(self, span: float, step_size: float | None) -> SolveStats:
        """Methods that tell of no steps take equal ones of `step_size`, the last one cut at the end."""
        sizes = [abs(float(h.detach())) for h in self.sizes]
        if not sizes and step_size:
            whole = max(0, math.ceil(span / step_size - 1e-9) - 1)
            sizes = [step_size] * whole + [span - whole * step_size]
        last = sizes[-1] if sizes else span
        return SolveStats(self.evaluations, len(sizes), self.rejected, min(sizes, default=span), last)


class _CountingSteps(_CountingField):
    """Counts steps, too: torchdiffeq's adaptive methods tell of each, its others warn if asked to."""

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.sizes.append(h)

    def callback_reject_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.rejected += 1


def check_tolerances(rtol: float, atol: float) -> None:
    """Refuse tolerances that are not positive numbers."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (isinstance(value, float | int) and 0.0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, not {value!r}")
