"""What every solver of dy/dt = f(t, y), y(t0) = y0 shares: the problem, the solution, and what is refused."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states

VectorField = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]

# A solve that needs more evaluations than this has exploded; ten thousand are minutes, not hours.
MAX_NFE = 10_000


class SolverError(RuntimeError):
    """A solve could not be finished: the step underflowed, the state is not finite, or a limit was reached."""


class FieldError(RuntimeError):
    """What was given as f(t, y) is not a vector field, or not one that this combination can solve or differentiate."""


@dataclass
class BackwardStats:
    """What a backward pass cost; filled in when it has run.

    Attributes:
        evaluations: evaluations of the field, each with its vector-Jacobian product.
    """

    evaluations: int = 0


@dataclass(frozen=True)
class SolveStats:
    """What a solve cost.

    Attributes:
        evaluations: evaluations of the field (NFE).
        accepted: steps taken.
        rejected: steps tried and thrown away because their error was too large.
        smallest_step: size of the smallest accepted step, in units of t.
        last_step: size of the last accepted step, in units of t.
        next_step: the first step to try in a solve like this one, in units of t: what the
            controller made of this solve's first step. None where no controller runs.
        backward: what its backward pass costs; None where that evaluates no field.
    """

    evaluations: int
    accepted: int
    rejected: int
    smallest_step: float
    last_step: float
    next_step: float | None = None
    backward: BackwardStats | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Step:
    """One accepted step, from which `Solver.replay` gives the state at t + fraction * h.

    Attributes:
        t: start time.
        h: step size, negative when integrating backwards.
        y: state at t.
        fraction: how far into the step the wanted state lies, in (0, 1].
        context: what `Problem.record` returned as the step began.
    """

    t: float
    h: float
    y: Tensor
    fraction: float = 1.0
    context: Any = None


@dataclass(frozen=True)
class Solution:
    """A solve's result: the state `y` at t1, its cost, and the accepted steps where asked for."""

    y: Tensor
    stats: SolveStats
    steps: Sequence[Step] = ()


def rms_norm(x: Tensor) -> Tensor:
    """Root of the mean square, the norm in which an error is held against its tolerance."""
    flat = x.reshape(-1)
    return (torch.dot(flat, flat) / flat.numel()).sqrt()  # no copy, and vector_norm is off by 4e-6 in float32


def nothing() -> None:
    """As `Problem.record`: keep the steps, and nothing beside them."""


@dataclass(frozen=True)
class Problem:
    """The initial value problem dy/dt = field(t, y), y(t0) = y0 over [t0, t1], and what is wanted of its solve.

    Attributes:
        field: f(t, y), with t a scalar tensor of y's dtype and device; returns dy/dt in y's shape and changes
            nothing in place.
        y0: state at t0, a tensor of any shape, float32 or float64.
        t0: start of the interval.
        t1: its end; t1 < t0 integrates backwards in time.
        warm_step: first step of an adaptive solver whose `first_step` is "warm", in units of t.
        max_nfe: most evaluations of the field before `SolverError`.
        norm: maps error / tolerance to a scalar tensor; a step is accepted where it is <= 1.
        record: called as each accepted step begins, where the steps are wanted (`Solution.steps`); what it
            returns is kept with the step.
    """

    field: VectorField
    y0: Tensor
    t0: float = 0.0
    t1: float = 1.0
    warm_step: float | None = None
    max_nfe: int = MAX_NFE
    norm: Norm = rms_norm
    record: Callable[[], Any] | None = None


class Solver(ABC):
    """A way to solve dy/dt = f(t, y) over [t0, t1].

    A solver holds settings only: plain values, compared by value, never changed by a solve. Subclass it,
    implement `integrate` and `replay`, and name the class in a config (`model.net.init_args.solver`).
    """

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def controls_error(self) -> bool:
        """Whether it chooses its steps by the error it estimates, over the whole batch at once.

        Then the answer for one image depends on the images that it is solved together with.
        """
        return False

    def solve(self, problem: Problem) -> Solution:
        """Solve an initial value problem.

        An empty interval or an empty state is solved by y0, without an evaluation. Under
        `torch.inference_mode` the solve runs in no-grad mode instead, where a field may compute gradients
        of its own (f = -grad E) and changes in place are seen.

        Raises:
            SolverError: the solve cannot be finished; the message says where it stopped.
            FieldError: the field returns another shape, changes its input in place, or draws random numbers
                where the solver controls its error.
            ValueError: the state is complex, or of whole numbers.
        """
        y0 = problem.y0
        if y0.dtype not in (torch.float32, torch.float64):
            advice = "solve torch.view_as_real of it" if y0.is_complex() else "convert it to float32 first"
            raise ValueError(f"a state must be float32 or float64, not {y0.dtype}: {advice}")
        if problem.t0 == problem.t1 or y0.numel() == 0:
            return Solution(y0, SolveStats(0, 0, 0, 0.0, 0.0))
        with outside_inference_mode() as was_inside:
            if was_inside:
                problem = replace(problem, y0=y0.clone())
            if not self.controls_error:
                return self.integrate(problem)
            with refusing_randomness(problem, f"{type(self).__name__} with error control"):
                return self.integrate(problem)

    @abstractmethod
    def integrate(self, problem: Problem) -> Solution:
        """Do the solve of a problem that `solve` has found to be sound: t0 and t1 differ, y0 is not empty."""

    @abstractmethod
    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Do an accepted step again, differentiably; gives y at `step.t + step.fraction * step.h`."""

    def with_tolerance(self, rtol: float | None, atol: float | None) -> "Solver":
        """Return the same solver with those tolerances replaced that are not None."""
        del rtol, atol
        return self

    def trajectory(self, problem: Problem, times: Sequence[float]) -> Tensor:
        """Dense output: the states at the given times, `[T, *y0.shape]`.

        Runs one solve from times[0] to times[-1] as training does and interpolates within its steps. Costs
        the solve once more: meant for pictures.

        Args:
            problem: whose y0 is the state at times[0]; its own interval is not used.
            times: T strictly increasing or decreasing times, T >= 2.
        """
        problem = replace(problem, t0=times[0], t1=times[-1], record=nothing)
        if problem.y0.numel() == 0:
            return problem.y0.expand(len(times), *problem.y0.shape)
        with outside_inference_mode() as was_inside:
            if was_inside:
                problem = replace(problem, y0=problem.y0.clone())
            steps = self.solve(problem).steps
            states = [problem.y0]
            for time in times[1:]:
                # the first step whose end is not short of `time` (a hair of slack for rounding)
                step = next((s for s in steps if (time - s.t) / s.h <= s.fraction + 1e-9), steps[-1])
                fraction = min((time - step.t) / step.h, 1.0)
                states.append(self.replay(problem.field, Step(step.t, step.h, step.y, fraction)))
            return torch.stack(states)


@contextmanager
def outside_inference_mode() -> Iterator[bool]:
    """Leave `torch.inference_mode` for no-grad mode, where that is on; yields whether it was."""
    was_inside = torch.is_inference_mode_enabled()
    if not was_inside:
        yield False
        return
    with torch.inference_mode(False), torch.no_grad():
        yield True


def random_states(device: torch.device) -> list[Tensor]:
    """The states of torch's random numbers that a field on this device may draw from."""
    of_device = [] if device.type == "cpu" else get_device_states(torch.empty(0, device=device))[1]
    return [torch.get_rng_state(), *of_device]


@contextmanager
def refusing_randomness(problem: Problem, what: str) -> Iterator[None]:
    """Refuse a field that draws random numbers, such as dropout in training.

    Noise that is drawn anew at each evaluation makes f no function of t and y: an error estimate then
    measures the noise, and a second solve meets another field.

    Raises:
        FieldError: the state of the random numbers has changed.
    """
    before = random_states(problem.y0.device)
    failure = None
    try:
        yield
    except SolverError as error:  # as noise ends many a solve: its error does not shrink with the step
        failure = error
    if not all(map(torch.equal, before, random_states(problem.y0.device))):
        raise FieldError(
            f"the field {name_of(problem.field)} draws random numbers (dropout?), so it is no function of t and y, "
            f"which {what} needs: take fixed steps with Backprop or Checkpoint, or move the noise out of the field"
        ) from failure
    if failure is not None:
        raise failure


def name_of(field: VectorField) -> str:
    """A field's class, or a function's name."""
    return getattr(field, "__qualname__", type(field).__name__)


def evaluate(field: VectorField, t: float | Tensor, y: Tensor) -> Tensor:
    """f(t, y) in the state's own precision: under autocast a field answers in 16 bits, the state must not.

    Raises:
        FieldError: the field changes y in place, or does not return a real tensor of y's shape.
    """
    time = t if isinstance(t, Tensor) else torch.full((), t, dtype=y.dtype, device=y.device)
    version = y._version
    try:
        slope = field(time, y)
    except RuntimeError as error:
        if "a leaf Variable that requires grad" in str(error):
            raise in_place_error(field) from error
        raise
    if y._version != version:
        raise in_place_error(field)
    if not isinstance(slope, Tensor):
        raise FieldError(f"{name_of(field)} returned {type(slope).__name__}: f(t, y) must be a tensor in y's shape")
    if slope.shape != y.shape or slope.is_complex():
        kind = "complex values" if slope.is_complex() else f"the shape {list(slope.shape)}"
        raise FieldError(
            f"{name_of(field)} returned {kind} for a state of shape {list(y.shape)}: f(t, y) must be real and keep "
            "the shape of y (are its arguments t, y in this order?)"
        )
    return slope.to(y.dtype)


def in_place_error(field: VectorField) -> FieldError:
    """What to say of a field that works on the solver's own state."""
    return FieldError(
        f"{name_of(field)} changes its input y in place, which is the solver's own state: use out-of-place operations "
        "(relu without inplace=True, y + 1 instead of y += 1)"
    )


class _Together(torch.autograd.Function):
    """A scalar as it is; under vmap, the root mean square over the samples, as if they were solved together."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del inputs
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del info
        return (x if in_dims[0] is None else x.square().mean(in_dims[0]).sqrt()), None


def host_value(x: Tensor) -> float:
    """The number in a scalar tensor, for which the host waits."""
    try:
        return float(x)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
    return host_value(_Together.apply(x))  # pyright: ignore[reportArgumentType] -- a tensor, untyped in torch


def check_positive_number(name: str, value: Any) -> None:
    """Refuse what is not a positive, finite number.

    Raises:
        ValueError: with the name of the setting.
    """
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value!r}")
