"""How a solve is differentiated: `Backprop`, `Checkpoint`, `Adjoint`. Any of them takes any solver.

The first two give the exact gradient of the numbers that the solver computed (discretise, then
optimise); `Adjoint` solves the gradient's own differential equation (optimise, then discretise).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from odenet_lightning.solvers import MAX_NFE, Norm, Solver, SolveStats, Step, VectorField, rms_norm


@dataclass
class BackwardStats:
    """What the way back cost; filled in when the backward pass has run.

    Attributes:
        evaluations: evaluations of the field, each with its vector-Jacobian product.
    """

    evaluations: int = 0


@dataclass(frozen=True)
class Integral:
    """A differentiable solve: the state `y` at t1, the solve's cost, and the way back's.

    `backward` is None where going back evaluates no field.
    """

    y: Tensor
    stats: SolveStats
    backward: BackwardStats | None = None


class Gradient(ABC):
    """A way to differentiate y(t1) with respect to y(t0) and the field's parameters."""

    @abstractmethod
    def integrate(
        self,
        solver: Solver,
        field: nn.Module,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
    ) -> Integral:
        """Solve dy/dt = field(t, y) over [t0, t1] so that gradients flow back through the result.

        Args:
            solver: how to solve.
            field: f(t, y), whose parameters get gradients.
            y0: state at t0, float32 or float64.
            t0: start of the interval.
            t1: end of the interval.
            warm_step: see `Solver.solve`.
            max_nfe: most evaluations, for the forward and for the backward solve each.

        Raises:
            SolverError: a solve cannot be finished; on the way back, out of `backward()`.
        """


class Backprop(Gradient):
    """Automatic differentiation through every accepted step of the solver.

    Exact (to rounding) for the discrete solution; one vector-Jacobian product an evaluation and no
    evaluation more, so it is the fastest. Memory grows with the evaluations of the accepted steps:
    every one keeps its intermediate results. Step sizes count as constants.

    Not when that memory is what you lack: `Checkpoint` gives the same gradient.
    """

    def integrate(
        self,
        solver: Solver,
        field: nn.Module,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
    ) -> Integral:
        """See `Gradient.integrate`."""
        solution = solver.solve(field, y0, t0, t1, warm_step=warm_step, max_nfe=max_nfe)
        return Integral(solution.y, solution.stats)


class Checkpoint(Gradient):
    """The discrete adjoint: keep the accepted states, redo and differentiate each step on the way back.

    With steps y_{n+1} = Phi_n(y_n, theta) and a_N = dL/dy_N, going back over n:
    a_n = a_{n+1} dPhi_n/dy and dL/dtheta += a_{n+1} dPhi_n/dtheta. Exact: equal to `Backprop` to
    rounding, since it differentiates the very same steps. This is the discrete analogue of the
    adjoint method, simpler than the continuous one and without its error.

    Memory: one state an accepted step, plus one step's intermediate results, whatever the number of
    steps. Time: about one more evaluation for each one of the accepted steps. Rejected steps cost
    nothing on the way back.

    Not when memory is no concern (`Backprop` is faster), nor for higher derivatives.

    Sources: Gholami, Keutzer, Biros 2019 (ANODE, arXiv:1902.10298); Zhuang et al. 2020 (ACA,
    arXiv:2006.02493); Griewank 1992 on checkpointing.
    """

    def integrate(
        self,
        solver: Solver,
        field: nn.Module,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
    ) -> Integral:
        """See `Gradient.integrate`."""
        with torch.no_grad():
            solution = solver.solve(field, y0, t0, t1, warm_step=warm_step, max_nfe=max_nfe, record=True)
        if not torch.is_grad_enabled():
            return Integral(solution.y, solution.stats)
        backward = BackwardStats()
        # the way back runs uncompiled: its steps come in more kinds than graphs are worth
        y1 = _Replay.apply(solver.eager(), field, solution.steps, solution.y, backward, y0, *trainable(field))
        return Integral(y1, solution.stats, backward)


class Adjoint(Gradient):
    """The continuous adjoint (Pontryagin 1962; Chen et al. 2018, arXiv:1806.07366), the post's method.

    With a(t) = dL/dy(t), solve backwards from t1 to t0, together with y itself:
    da/dt = -a df/dy, dg/dt = -a df/dtheta, g(t1) = 0; then dL/dy0 = a(t0) and dL/dtheta = g(t0).

    Memory: one state, whatever the solve. Time: a second solve whose evaluations each cost a
    vector-Jacobian product. Not exact: y is recomputed backwards, so the gradient carries the error
    of both solves and shrinks with the tolerances only. At the post's tolerance of 0.1 expect
    several per cent.

    Not recommended when the states fit into memory, or when gradients must be trusted: `Checkpoint`
    costs about the same, is exact and keeps little. Fields whose flow contracts cannot be
    recomputed backwards at all (Gholami et al. 2019).

    Args:
        rtol: relative tolerance of the backward solve, by default the solver's.
        atol: absolute tolerance of the backward solve, by default the solver's.
        seminorm: leave g out of the error norm (Kidger, Chen, Lyons 2021, arXiv:2009.09457): g does
            not feed back into y and a, so its error need not shrink their steps.
    """

    def __init__(self, rtol: float | None = None, atol: float | None = None, seminorm: bool = False) -> None:
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None and not (isinstance(value, float | int) and 0.0 < value < float("inf")):
                raise ValueError(f"Adjoint's {name} must be a positive number, not {value!r}")
        self.rtol, self.atol, self.seminorm = rtol, atol, seminorm

    def integrate(
        self,
        solver: Solver,
        field: nn.Module,
        y0: Tensor,
        t0: float = 0.0,
        t1: float = 1.0,
        *,
        warm_step: float | None = None,
        max_nfe: int = MAX_NFE,
    ) -> Integral:
        """See `Gradient.integrate`."""
        with torch.no_grad():
            solution = solver.solve(field, y0, t0, t1, warm_step=warm_step, max_nfe=max_nfe)
        if not torch.is_grad_enabled():
            return Integral(solution.y, solution.stats)
        problem = _AdjointProblem(
            solver.with_tolerance(self.rtol, self.atol), field, t0, t1, self.seminorm, max_nfe, BackwardStats()
        )
        y1 = _ContinuousAdjoint.apply(problem, solution.y, y0, *trainable(field))
        return Integral(y1, solution.stats, problem.stats)


def trainable(field: nn.Module) -> tuple[nn.Parameter, ...]:
    """The field's parameters that want a gradient."""
    return tuple(p for p in field.parameters() if p.requires_grad)


class _Precision:
    """The autocast state of the forward pass, to evaluate the field alike on the way back."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self.enabled = torch.is_autocast_enabled(device_type)
        self.dtype = torch.get_autocast_dtype(device_type)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Enter it again, without the cache of cast weights, which would outlive its graph."""
        if not self.enabled and not torch.is_autocast_enabled(self.device_type):
            yield  # nothing to restore, and nothing changed that a compiled step would have to guard on
            return
        with torch.autocast(self.device_type, self.dtype, enabled=self.enabled, cache_enabled=False):
            yield


class _Counted(nn.Module):
    """A field that counts into `stats`, and shares its parameters."""

    def __init__(self, field: nn.Module, stats: BackwardStats) -> None:
        super().__init__()
        self.field, self.stats = field, stats

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.stats.evaluations += 1
        return self.field(t, y)


def vector_jacobian(
    output: Tensor, y: Tensor, params: Sequence[nn.Parameter], cotangent: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The cotangent's products with d output/dy and d output/dparams; None for parameters without a part in it."""
    if not output.requires_grad:
        return torch.zeros_like(y), [None] * len(params)
    grad_y, *grads = torch.autograd.grad(output, (y, *params), cotangent, allow_unused=True)
    return torch.zeros_like(y) if grad_y is None else grad_y, list(grads)


def add(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may be missing."""
    if total is None or grad is None:
        return grad if total is None else total
    return total + grad


class _Replay(torch.autograd.Function):
    """y0 -> y1 over recorded steps, differentiated by replaying them in reverse order."""

    @staticmethod
    def forward(
        ctx: Any,
        solver: Solver,
        field: nn.Module,
        steps: Sequence[Step],
        y1: Tensor,
        stats: BackwardStats,
        y0: Tensor,
        *params: nn.Parameter,
    ) -> Tensor:
        ctx.solver, ctx.field, ctx.stats, ctx.precision = solver, field, stats, _Precision(y0.device.type)
        ctx.grid = [(step.t, step.h, step.fraction) for step in steps]
        # the parameters are saved to be told if they were changed in place in between
        ctx.save_for_backward(*(step.y for step in steps), *params)
        return y1.clone() if y1 is y0 else y1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (cotangent,) = cotangents
        saved = ctx.saved_tensors
        states, params = saved[: len(ctx.grid)], saved[len(ctx.grid) :]
        field = _Counted(ctx.field, ctx.stats)
        totals: list[Tensor | None] = [None] * len(params)
        for (t, h, fraction), state in zip(reversed(ctx.grid), reversed(states), strict=True):
            with torch.enable_grad(), ctx.precision.restored():
                y = state.detach().requires_grad_()
                output = ctx.solver.replay(field, Step(t, h, y, fraction))
            cotangent, grads = vector_jacobian(output, y, params, cotangent)
            totals = [add(total, grad) for total, grad in zip(totals, grads, strict=True)]
        return (None, None, None, None, None, cotangent if ctx.needs_input_grad[5] else None, *totals)


@dataclass
class _AdjointProblem:
    """The adjoint's differential equation for the flat state z = (y, a, g)."""

    solver: Solver
    field: nn.Module
    t0: float
    t1: float
    seminorm: bool
    max_nfe: int
    stats: BackwardStats

    def split(self, z: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Cut the flat state into its parts."""
        return [part.view_as(t) for part, t in zip(z.split([t.numel() for t in like]), like, strict=True)]

    def norm(self, like: Sequence[Tensor]) -> Norm:
        """The largest of the parts' norms, as in torchdiffeq, so that no part hides in another's size."""
        counted = 2 if self.seminorm else len(like)

        def largest(z: Tensor) -> Tensor:
            return torch.stack([rms_norm(part) for part in self.split(z, like)[:counted]]).max()

        return largest

    def dynamics(self, params: Sequence[nn.Parameter], like: Sequence[Tensor], precision: _Precision) -> VectorField:
        """dz/dt = (f, -a df/dy, -a df/dtheta)."""

        def augmented(t: Tensor, z: Tensor) -> Tensor:
            state, a, *_ = self.split(z, like)
            with torch.enable_grad(), precision.restored():
                y = state.detach().requires_grad_()
                f = self.field(t, y).to(y.dtype)
            grad_y, grads = vector_jacobian(f, y, params, -a)
            tail = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
            return torch.cat([part.reshape(-1) for part in (f.detach(), grad_y, *tail)])

        return augmented


class _ContinuousAdjoint(torch.autograd.Function):
    """y0 -> y1, differentiated by a second solve backwards in time."""

    @staticmethod
    def forward(ctx: Any, problem: _AdjointProblem, y1: Tensor, y0: Tensor, *params: nn.Parameter) -> Tensor:
        ctx.problem, ctx.precision = problem, _Precision(y0.device.type)
        y1 = y1.clone() if y1 is y0 else y1
        ctx.save_for_backward(y1, *params)
        return y1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        problem: _AdjointProblem = ctx.problem
        y1, *params = ctx.saved_tensors
        parts = [y1, cotangents[0], *(torch.zeros_like(p) for p in params)]
        z1 = torch.cat([part.reshape(-1) for part in parts]).to(y1.dtype)
        field = problem.dynamics(params, parts, ctx.precision)
        solution = problem.solver.solve(
            field, z1, problem.t1, problem.t0, norm=problem.norm(parts), max_nfe=problem.max_nfe
        )
        problem.stats.evaluations += solution.stats.evaluations
        _, grad_y0, *grads = problem.split(solution.y, parts)
        return (None, None, grad_y0 if ctx.needs_input_grad[2] else None, *grads)
