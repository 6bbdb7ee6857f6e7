"""The initial value problem, its solution, and the cost of the solve and of its backward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

VectorField = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]

# A solve that needs more evaluations than this has exploded; ten thousand are minutes, not hours.
MAX_NFE = 10_000


class SolverError(RuntimeError):
    """A solve could not be finished: the step underflowed, the state is not finite, or a limit was reached."""


@dataclass
class BackwardStats:
    """The cost of a backward pass, filled in while it runs.

    Attributes:
        evaluations: evaluations of the field, each with its vector-Jacobian product; per image, as in `SolveStats`.
        y0_error: relative distance between y0 and the state that `Adjoint` and `Reversible` recompute at t0: the rms
            of their difference over the larger of y0's and y1's rms. The relative error of the gradient is of that
            order, and larger where the flow contracts strongly. 0 where nothing is recomputed backwards.
    """

    evaluations: float = 0
    y0_error: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class ImageStats:
    """The cost of each image of a solve, `[B]`, where each is solved by itself.

    Attributes:
        evaluations: evaluations of the field (NFE).
        accepted: steps taken.
        rejected: steps tried and thrown away.
    """

    evaluations: Tensor
    accepted: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class SolveStats:
    """The cost of a solve.

    Where each image is solved by itself (`per_sample`), finished images leave the batch: evaluations, accepted,
    rejected and last_step are means over the images, and so in units of what the whole batch costs.

    Attributes:
        evaluations: evaluations of the field (NFE).
        accepted: steps taken.
        rejected: steps tried and thrown away because their error was too large.
        smallest_step: size of the smallest accepted step, in units of t.
        last_step: size of the last accepted step, in units of t.
        next_step: the first step to try in a similar solve, in units of t: the controller's choice after this
            solve's first accepted step. None where no controller runs.
        backward: the cost of its backward pass; None where that does not evaluate the field.
        images: the cost of each image, where each is solved by itself.
    """

    evaluations: float
    accepted: float
    rejected: float
    smallest_step: float
    last_step: float
    next_step: float | None = None
    backward: BackwardStats | None = field(default=None, compare=False)
    images: ImageStats | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Step:
    """One accepted step, from which `Solver.replay` gives the state at t + fraction * h.

    Attributes:
        t: start time; of each image, `[B, 1, ...]`, where each is solved by itself; likewise h and fraction.
        h: step size, negative when integrating backwards.
        y: state at t.
        fraction: how far into the step the wanted state lies, in (0, 1].
        context: whatever `Problem.record` adds.
        images: places in the batch of those images that take the step; None where all do.
        settings: of a solve that is replayed whole: norm, warm step and limit; see `whole`.
    """

    t: float | Tensor
    h: float | Tensor
    y: Tensor
    fraction: float | Tensor = 1.0
    context: Any = None
    images: Tensor | None = None
    settings: "Problem | None" = None


@dataclass(frozen=True)
class Solution:
    """A solve's result: the state `y` at t1, its cost, and the accepted steps where asked for."""

    y: Tensor
    stats: SolveStats
    steps: Sequence[Step] = ()


def rms_norm(x: Tensor) -> Tensor:
    """Root of the mean square, the norm in which an error is compared with its tolerance."""
    flat = x.reshape(-1)
    return (torch.dot(flat, flat) / flat.numel()).sqrt()  # no copy, and vector_norm is off by 4e-6 in float32


def unchanged(step: Step) -> Step:
    """For `Problem.record`: keeps the steps as they are."""
    return step


@dataclass(frozen=True)
class Problem:
    """The initial value problem dy/dt = field(t, y), y(t0) = y0 over [t0, t1], and the settings of its solve.

    Attributes:
        field: f(t, y), with t a scalar tensor of y's dtype and device, or `[B, 1, ...]` where each image is solved
            by itself; returns dy/dt in y's shape and changes nothing in place.
        y0: state at t0, a tensor of any shape, float32 or float64.
        t0: start of the interval.
        t1: its end; t1 < t0 integrates backwards in time.
        warm_step: first step of an adaptive solver whose `first_step` is "warm", in units of t.
        max_nfe: most evaluations of the field before `SolverError`.
        norm: maps error / tolerance, of one image where each is solved by itself, to a scalar tensor; a step is
            accepted where it is <= 1.
        record: called with each accepted step, where the steps are wanted: before the step with fixed steps, after
            its acceptance with error control. What it returns is kept in `Solution.steps`.
        observe: called by adaptive Runge-Kutta methods once per accepted step, with the step, the state at its end
            and its stages, the last of which is f there.
    """

    field: VectorField
    y0: Tensor
    t0: float = 0.0
    t1: float = 1.0
    warm_step: float | None = None
    max_nfe: int = MAX_NFE
    norm: Norm = rms_norm
    record: Callable[[Step], Step] | None = None
    observe: Callable[[Step, Tensor, Sequence[Tensor]], None] | None = None


def whole(problem: Problem) -> Step:
    """A solve as one step, for a solver that replays it whole: with the settings by which it takes the same steps."""
    settings = replace(problem, y0=problem.y0.new_empty(0), record=None, observe=None)
    return Step(problem.t0, problem.t1 - problem.t0, problem.y0, settings=settings)


def again(field: VectorField, step: Step) -> Problem:
    """The problem of such a step, up to its fraction, with another field."""
    t0, t1 = float(step.t), float(step.t + step.fraction * step.h)
    return replace(step.settings or Problem(field, step.y), field=field, y0=step.y, t0=t0, t1=t1)
