"""torchdiffeq as a solver: the reference, for the post's exact numbers and for methods that are missing here."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from odenet_lightning.solvers.base import Solver
from odenet_lightning.solvers.evaluation import evaluate, overwritten_error
from odenet_lightning.solvers.problem import (
    Problem,
    Solution,
    SolverError,
    SolveStats,
    Step,
    VectorField,
    again,
    rms_norm,
    whole,
)
from odenet_lightning.solvers.settings import check_positive_number

# torchdiffeq's methods without error control: they must be given a step, or they silently take one
FIXED_TORCHDIFFEQ_METHODS = frozenset(
    ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
)


class TorchDiffEq(Solver):
    """Any method of the installed torchdiffeq, as the reference and for the post's exact numbers.

    Slower than this package's own methods at these sizes (stages on a strided axis, times as tensors):
    choose it to compare, or for a method that is missing here ("dopri8", "implicit_adams",
    "scipy_solver", ...). It exposes no single steps, so `replay` and thus `Checkpoint` redo the whole
    solve. Its adaptive methods differentiate their heuristic first step, where this package's own treat step
    sizes as constants: the gradients differ by about 1e-3 at a tolerance of 0.1.

    Source: R. T. Q. Chen, torchdiffeq, 2018.
    """

    def __init__(
        self, method: str = "dopri5", rtol: float = 1e-3, atol: float = 1e-3, options: dict[str, Any] | None = None
    ) -> None:
        """Refuses, with torchdiffeq's own reason, what torchdiffeq would refuse.

        Args:
            method: name of one of torchdiffeq's methods.
            rtol: relative tolerance, not used by fixed-step methods.
            atol: absolute tolerance, likewise.
            options: torchdiffeq's options, such as `step_size` (required by fixed-step methods),
                `first_step`, `max_num_steps` (1,000 here unless given).
        """
        check_positive_number("rtol", rtol)
        check_positive_number("atol", atol)
        self.method, self.rtol, self.atol, self.options = method, rtol, atol, dict(options or {})
        step_size = self.options.get("step_size")
        if method in FIXED_TORCHDIFFEQ_METHODS:
            if step_size is None and "grid_constructor" not in self.options:
                raise ValueError(f'torchdiffeq\'s "{method}" takes fixed steps: give options={{"step_size": h}}')
            if step_size is not None:
                check_positive_number("step_size", step_size)
        elif self.controls_error:
            self.options.setdefault("max_num_steps", 1_000)
        self._try_out(step_size)

    def _try_out(self, step_size: float | None) -> None:
        """A short solve of y' = 0 finds an unknown method or option now rather than after the first batch."""
        arguments = self.arguments()
        if self.controls_error:
            arguments["options"] = {**self.options, "max_num_steps": 1_000}
        end = 1.0 if step_size is None else min(1.0, 2.0 * step_size)
        times = torch.tensor([0.0, end], dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ignore_scipy_hint()
            try:
                torchdiffeq.odeint(lambda t, y: 0 * y, torch.ones(1, dtype=torch.float64), times, **arguments)
            except Exception as e:
                raise ValueError(
                    f'torchdiffeq refuses the method "{self.method}" with options {self.options}: {e}'
                ) from e

    @property
    def controls_error(self) -> bool:
        """Whether torchdiffeq controls this method's steps itself."""
        return self.method not in FIXED_TORCHDIFFEQ_METHODS | {"scipy_solver"}

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of torchdiffeq.odeint."""
        return {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": self.options}

    @property
    def has_tolerances(self) -> bool:
        """Whether its method uses them; scipy's do."""
        return self.method not in FIXED_TORCHDIFFEQ_METHODS

    def integrate(self, problem: Problem) -> Solution:
        """Call torchdiffeq.odeint; see `Solver.solve`. A recorded solve is one step, replayed whole."""
        t0, t1, arguments = problem.t0, problem.t1, self.arguments()
        if self.method == "scipy_solver" and torch.is_grad_enabled():
            raise ValueError("scipy computes outside of torch, so its steps have no gradient: use Adjoint")
        if problem.norm is not rms_norm and self.controls_error:
            arguments["options"] = {**self.options, "norm": problem.norm}
        steps = [] if problem.record is None else [problem.record(whole(problem))]
        counter = self._counting(problem)
        y1 = self._states(counter, problem.y0, (t0, t1), arguments)[1]
        return Solution(y1, counter.stats(abs(t1 - t0), self.options.get("step_size")), steps)

    def replay(self, field: VectorField, step: Step) -> Tensor:
        """Solve over the step's interval again, differentiably."""
        return self.integrate(again(field, step)).y

    def states_at(self, problem: Problem, times: Sequence[float]) -> list[Tensor]:
        """The states at times after t0, by torchdiffeq's own interpolation."""
        counter = self._counting(problem)
        return list(self._states(counter, problem.y0, (problem.t0, *times), self.arguments())[1:])

    def _counting(self, problem: Problem) -> "_CountingField":
        return (_CountingSteps if self.controls_error else _CountingField)(problem.field, problem.max_nfe)

    def _states(
        self, counter: "_CountingField", y0: Tensor, times: Sequence[float], arguments: dict[str, Any]
    ) -> Tensor:
        """The states at all times; torchdiffeq's assertions (underflow, NaN, its limit of steps) say what to try."""
        grid = torch.tensor(times, dtype=y0.dtype, device=y0.device)
        try:
            with warnings.catch_warnings():
                ignore_scipy_hint()
                states = torchdiffeq.odeint(counter, y0, grid, **arguments)
        except AssertionError as e:
            raise SolverError(
                f"{self!r} stopped after {counter.evaluations} evaluations: {str(e)[:80]}; "
                "try looser tolerances, a larger max_num_steps or a fixed step"
            ) from e
        assert isinstance(states, Tensor)
        return states


def ignore_scipy_hint() -> None:
    """Do without scipy's hint that a method has no use for `min_step`, which torchdiffeq gives to each."""
    warnings.filterwarnings("ignore", message=".*arguments have no effect for a chosen solver")


class _CountingField:
    """A field as torchdiffeq wants it, counting evaluations."""

    def __init__(self, field: VectorField, max_nfe: int) -> None:
        self.field, self.max_nfe = field, max_nfe
        self.evaluations = self.rejected = 0
        self.sizes: list[Tensor] = []
        self.last: Tensor | None = None  # what was returned last

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if self.evaluations >= self.max_nfe:
            raise SolverError(
                f"torchdiffeq needed more than max_nfe = {self.max_nfe} evaluations: try looser tolerances "
                "or a larger max_nfe"
            )
        self.evaluations += 1
        before = self.last
        version = 0 if before is None else before._version
        self.last = evaluate(self.field, t, y)
        if before is not None and before._version != version:
            raise overwritten_error(self.field)
        return self.last

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
