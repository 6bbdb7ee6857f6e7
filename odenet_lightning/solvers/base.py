"""Solver: what every solver of dy/dt = f(t, y), y(t0) = y0 shares, and what all of them refuse."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from odenet_lightning.solvers.evaluation import outside_inference_mode, refusing_randomness
from odenet_lightning.solvers.problem import Problem, Solution, SolveStats, Step, VectorField, unchanged
from odenet_lightning.solvers.settings import Settings


class Solver(Settings, ABC):
    """A way to solve dy/dt = f(t, y) over [t0, t1].

    A solver holds settings only: plain values, compared by value, never changed by a solve. Subclass it,
    implement `integrate` and `replay`, and name the class in a config (`model.net.init_args.solver`).
    """

    @property
    def controls_error(self) -> bool:
        """Whether it chooses its steps by the error it estimates."""
        return False

    @property
    def couples_images(self) -> bool:
        """Whether it chooses them for the whole batch at once: one image's answer then depends on the others."""
        return self.controls_error

    def by_sample(self) -> "Solver":
        """Return the same solver, but solving each image by itself; itself where it cannot."""
        return self

    def solve(self, problem: Problem) -> Solution:
        """Solve an initial value problem.

        An empty interval or an empty state is solved by y0, without an evaluation. Under
        `torch.inference_mode` the solve runs in no-grad mode instead, where a field may compute gradients
        of its own (f = -grad E) and changes in place are seen.

        Raises:
            SolverError: the solve cannot be finished; the message says where it stopped.
            FieldError: the field returns another shape, changes its input in place, or draws random numbers
                where the solver controls its error.
            ValueError: y0 is neither float32 nor float64.
            TypeError: a subclass's `integrate` returns something else than a `Solution`.
        """
        return self.checked(problem, self.integrate)

    def checked(self, problem: Problem, integrate: Callable[[Problem], Solution]) -> Solution:
        """What `integrate` makes of a problem that is sound and not empty; see `solve`."""
        y0 = problem.y0
        if y0.dtype not in (torch.float32, torch.float64):
            advice = "solve torch.view_as_real of it" if y0.is_complex() else "convert it to float32 first"
            raise ValueError(f"a state must be float32 or float64, not {y0.dtype}: {advice}")
        if problem.t0 == problem.t1 or y0.numel() == 0:
            return Solution(y0, SolveStats(0, 0, 0, 0.0, 0.0))
        with outside_inference_mode(problem) as problem:
            refusing = refusing_randomness(problem, f"{type(self).__name__} with error control")
            with refusing if self.controls_error else nullcontext():
                solution = integrate(problem)
        if not isinstance(solution, Solution):
            raise TypeError(f"{type(self).__name__}.integrate returned {type(solution).__name__}, needs a Solution")
        return solution

    @abstractmethod
    def integrate(self, problem: Problem) -> Solution:
        """Do the solve of a problem that `solve` has found to be sound: t0 and t1 differ, y0 is not empty."""

    def steps_over(self, span: float) -> int | None:
        """Number of steps over an interval of that length, where it is known before the solve; None elsewhere."""
        del span
        return None

    @abstractmethod
    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Do an accepted step again, differentiably; gives y at `step.t + step.fraction * step.h`."""

    @property
    def has_tolerances(self) -> bool:
        """Whether its settings `rtol` and `atol` are in use."""
        return self.controls_error and {"rtol", "atol"} <= vars(self).keys()

    def with_tolerance(self, rtol: float | None, atol: float | None) -> "Solver":
        """Return the same solver with those tolerances replaced that are not None; refuse them where it has none."""
        given = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
        if given and not self.has_tolerances:
            raise ValueError(f"{self!r} takes fixed steps, for which rtol and atol mean nothing: leave them out")
        twin = copy.copy(self)
        vars(twin).update(given)
        return twin

    def trajectory(self, problem: Problem, times: Sequence[float]) -> Tensor:
        """Dense output: the states at the given times, `[T, *y0.shape]`.

        Runs one solve from times[0] to times[-1] as training does and interpolates within its steps. Costs
        the solve once more: meant for pictures.

        Args:
            problem: whose y0 is the state at times[0]; its own interval is not used.
            times: T strictly increasing or decreasing times, T >= 2.

        Raises:
            ValueError: the times are no such sequence.
        """
        check_order(times)
        problem = replace(problem, t0=times[0], t1=times[-1], record=unchanged)
        if problem.y0.numel() == 0:
            return problem.y0.expand(len(times), *problem.y0.shape)
        with outside_inference_mode(problem) as problem:
            return torch.stack([problem.y0, *self.states_at(problem, times[1:])])

    def states_at(self, problem: Problem, times: Sequence[float]) -> list[Tensor]:
        """The states at times after t0, for `trajectory`: a recorded solve, and the steps that hold them replayed."""
        steps = self.solve(problem).steps
        return [self.replay(problem.field, step_to(time, steps)) for time in times]


def step_to(time: float, steps: Sequence[Step]) -> Step:
    """The step within which a time lies, up to there."""
    # the first step whose end is not short of it (a hair of slack for rounding)
    step = next((s for s in steps if (time - s.t) / s.h <= s.fraction + 1e-9), steps[-1])
    return replace(step, fraction=min(float((time - step.t) / step.h), 1.0))


def check_order(times: Sequence[float]) -> None:
    """Refuse times that are neither strictly increasing nor strictly decreasing."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if not gaps or not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        raise ValueError(f"times must strictly increase or decrease, and be two at least, not {tuple(times)}")
