"""The continuous adjoint: the gradient's own differential equation, solved backwards."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from odenet_lightning.gradients.adjoint_per_sample import EachAdjoint, larger_part
from odenet_lightning.gradients.base import (
    Gradient,
    refuse_second_derivatives,
    refusing_transforms,
    vector_jacobian,
)
from odenet_lightning.gradients.recompute import Recomputation, buffers_of, inputs_of
from odenet_lightning.solvers import AdaptiveRungeKutta, Norm, Problem, Solution, Solver, VectorField, rms_norm
from odenet_lightning.solvers.evaluation import evaluate, refusing_randomness
from odenet_lightning.solvers.settings import check_positive_number

MOST_Y0_ERROR = 0.1  # up to here, gradients were found to be off by up to 10 %; beyond, by 8 to 76 %
# fields; Python's own memory of warnings is reset by much that a training step does
_warned: "WeakSet[Any]" = WeakSet()


class Adjoint(Gradient):
    """The continuous adjoint (Pontryagin 1962; Chen et al. 2018, arXiv:1806.07366), the post's method.

    With a(t) = dL/dy(t), solve backwards from t1 to t0, together with y itself:
    da/dt = -a df/dy, dg/dt = -a df/dtheta, g(t1) = 0; then dL/dy0 = a(t0) and dL/dtheta = g(t0).

    Memory: two states, whatever the solve. Time: a second solve whose evaluations each cost a
    vector-Jacobian product. Not exact: y is recomputed backwards, so the gradient carries the errors
    of both solves, which shrink only with the tolerances. At the post's tolerance of 0.1 expect tens of
    per cent (64 % in the reference rows of `study gradients`).

    It is not recommended when the states fit into memory, or when gradients must be trusted: `Checkpoint` is
    exact, keeps little, and is faster in every row of `study gradients`. A flow that contracts strongly cannot
    be recomputed backwards at any tolerance (Gholami et al. 2019, arXiv:1902.10298), and the gradient is then
    wrong. `SolveStats.backward.y0_error` is the relative error of the recomputed y0; a warning is given, once
    for each field, when it exceeds 0.1. In the post's network and two others, at tolerances of 0.1 to 1e-5, the
    relative error of the gradient was 0.4 to 9 times that of y0, and up to 36 times with `normalise=False`, since
    y0 does not show errors in dL/dy. A field that draws random numbers is refused.
    """

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        seminorm: bool = False,
        normalise: bool = True,
    ) -> None:
        """Tolerances by default are the solver's.

        Args:
            rtol: relative tolerance of the backward solve.
            atol: absolute tolerance of the backward solve.
            seminorm: leave g out of the error norm (Kidger, Chen, Lyons 2021, arXiv:2009.09457): g does
                not feed back into y and a, so its error need not shrink their steps. A `per_sample` solver
                always leaves it out, since g belongs to no image.
            normalise: solve for a over its root mean square at t1 and multiply back, so that neither the
                gradient nor its cost depends on the loss's scale (a mean over the batch, 16-bit loss scaling). Small
                tolerances then cost far more evaluations, and a relu's kinks can make them unreachable. False
                applies `atol` to dL/dy itself, as torchdiffeq does.
        """
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None:
                check_positive_number(f"Adjoint's {name}", value)
        self.rtol, self.atol, self.seminorm, self.normalise = rtol, atol, seminorm, normalise

    def solve(self, solver: Solver, problem: Problem) -> Solution:
        """See `Gradient.solve`."""
        field, y0 = problem.field, problem.y0
        if not torch.is_grad_enabled():
            return solver.solve(problem)
        recomputed = Recomputation(field, y0)
        with refusing_transforms("Adjoint"):
            with torch.no_grad(), refusing_randomness(problem, "the second solve of Adjoint"):
                solution = solver.solve(problem)
            recomputed.solved(problem)
            backwards = solver.with_tolerance(self.rtol, self.atol)
            back = _Backwards(self, backwards, recomputed, problem.t0, problem.t1, problem.max_nfe)
            y1 = _ContinuousAdjoint.apply(back, [solution.y], y0, *inputs_of(field))
        return Solution(y1, replace(solution.stats, backward=recomputed.stats))


@dataclass
class _Backwards:
    """The adjoint's differential equation for the flat state z = (y, a, g)."""

    settings: Adjoint
    solver: Solver
    field: Recomputation
    t0: float
    t1: float
    max_nfe: int

    def split(self, z: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Cut the flat state into its parts."""
        return [part.view_as(t) for part, t in zip(z.split([t.numel() for t in like]), like, strict=True)]

    def norm(self, like: Sequence[Tensor]) -> Norm:
        """The largest of the parts' norms, as in torchdiffeq, so that a small part's error counts, too."""
        counted = 2 if self.settings.seminorm else len(like)

        def largest(z: Tensor) -> Tensor:
            return torch.stack([rms_norm(part) for part in self.split(z, like)[:counted]]).max()

        return largest

    def dynamics(self, params: Sequence[Tensor], like: Sequence[Tensor], used: set[int]) -> VectorField:
        """dz/dt = (f, -a df/dy, -a df/dtheta); `used` collects the indices of the parameters that f depends on."""
        buffers = buffers_of(self.field.field)
        wanted = [p for p in params if p.requires_grad]

        def augmented(t: Tensor, z: Tensor) -> Tensor:
            state, a, *_ = self.split(z, like)
            with self.field.as_in_forward(buffers):
                y = state.detach().requires_grad_()
                f = evaluate(self.field, t, y)
            self.field.check_leaves(f, (y, *params))
            grad_y, grads = vector_jacobian(f, y, wanted, -a)
            used.update(place for place, grad in enumerate(grads) if grad is not None)
            tail = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, grads, strict=True)]
            return torch.cat([part.reshape(-1) for part in (f.detach(), grad_y, *tail)])

        return augmented

    def compare(self, recomputed: Tensor, y0: Tensor, y1: Tensor) -> None:
        """Note how far the recomputed state is from y0, and warn where the gradient cannot be right."""
        off = float(rms_norm(recomputed - y0) / torch.maximum(rms_norm(y0), rms_norm(y1)).clamp_min(1e-30))
        self.field.stats.y0_error = off
        if off > MOST_Y0_ERROR and is_first_warning(self.field.field):
            warnings.warn(
                f"Adjoint misses y0 by more than {MOST_Y0_ERROR:.0%} with {self.solver!r}, and its gradients are about "
                "as wrong, or more (in training, adjoint/y0_error shows by how much): take Checkpoint or Backprop, "
                "which are exact, or smaller tolerances or steps, unless the flow contracts too strongly for any",
                stacklevel=2,
            )

    def gradients(
        self, y0: Tensor, y1: Tensor, cotangent: Tensor, params: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """dL/dy0 and dL/dparams; None for a parameter that f does not depend on or that requires no gradient."""
        if isinstance(self.solver, AdaptiveRungeKutta) and self.solver.solves_each(y1):
            return self.gradients_of_each(self.solver, y0, y1, cotangent, params)
        scale = size_of(cotangent) if self.settings.normalise else torch.ones_like(cotangent.sum())
        wanted = [p for p in params if p.requires_grad]
        if not scale.isfinite():  # a loss scale that overflows: the gradient scaler finds NaN and lowers it
            return cotangent * torch.nan, [p * torch.nan if p.requires_grad else None for p in params]
        parts = [y1, cotangent / scale, *(torch.zeros_like(p) for p in wanted)]
        z1 = torch.cat([part.reshape(-1) for part in parts]).to(y1.dtype)
        used: set[int] = set()
        field = self.dynamics(params, parts, used)
        back = Problem(field, z1, self.t1, self.t0, max_nfe=self.max_nfe, norm=self.norm(parts))
        y, grad_y0, *grads = self.split(self.solver.solve(back).y, parts)
        self.compare(y, y0, y1)
        rest = iter([grad * scale if place in used else None for place, grad in enumerate(grads)])
        return grad_y0 * scale, [next(rest) if p.requires_grad else None for p in params]

    def gradients_of_each(
        self, solver: AdaptiveRungeKutta, y0: Tensor, y1: Tensor, cotangent: Tensor, params: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """`gradients`, with each image solved backwards by itself."""
        sizes = torch.vmap(size_of)(cotangent) if self.settings.normalise else cotangent.new_ones(len(y1))
        scale = sizes.view(-1, *[1] * (y1.dim() - 1))
        if not scale.isfinite().all():
            return cotangent * torch.nan, [p * torch.nan if p.requires_grad else None for p in params]
        each = EachAdjoint(solver, self.field, params, scale)
        z1 = torch.stack([y1, (cotangent / scale).to(y1.dtype)], 1)
        back = Problem(each, z1, self.t1, self.t0, max_nfe=self.max_nfe, norm=larger_part, observe=each.observe)
        y, a = solver.solve(back).y.unbind(1)
        self.compare(y, y0, y1)
        return a * scale, each.totals


def is_first_warning(field: VectorField) -> bool:
    """Whether a field has not been warned of, and remember that it is; always for one that cannot be remembered."""
    try:
        is_first = field not in _warned
        _warned.add(field)
    except TypeError:  # not hashable (a dataclass), or without weak references (__slots__)
        return True
    return is_first


def size_of(cotangent: Tensor) -> Tensor:
    """The cotangent's root mean square, safe from overflow; 1 where that is zero, NaN where it is not finite."""
    largest = cotangent.abs().max()
    largest = torch.where(largest == 0, torch.ones_like(largest), largest)
    size = rms_norm(cotangent / largest) * largest
    return torch.where(size == 0, torch.ones_like(size), size)


class _ContinuousAdjoint(torch.autograd.Function):
    """y0 -> y1, differentiated by a second solve backwards in time."""

    @staticmethod
    def forward(ctx: Any, back: _Backwards, solved: list[Tensor], y0: Tensor, *params: Tensor) -> Tensor:
        (y1,) = solved
        ctx.back = back
        ctx.save_for_backward(y0, y1, *params)
        return y1.clone()  # a later layer may change it in place

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives("Adjoint")
        back: _Backwards = ctx.back
        y0, y1, *saved = ctx.saved_tensors
        if y1.numel() == 0 or back.t0 == back.t1:
            return (None, None, cotangents[0], *([None] * len(saved)))
        grad_y0, grads = back.gradients(y0, y1, cotangents[0], back.field.tensors(saved))
        return (None, None, grad_y0 if ctx.needs_input_grad[2] else None, *grads)
