"""The gradient of reversible steps: each is undone by algebra and differentiated, so no earlier state is kept."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odenet_lightning.gradients.base import (
    Gradient,
    GradientError,
    refuse_second_derivatives,
    refusing_transforms,
    vector_jacobian,
)
from odenet_lightning.gradients.binomial import Kept, graph_is_kept
from odenet_lightning.gradients.recompute import Recomputation, Surroundings, add, inputs_of, sample
from odenet_lightning.solvers import Problem, Solution, Solver, Step, rms_norm
from odenet_lightning.solvers import Reversible as ReversibleSolver

# how far the recomputed y0 may be off: by rounding, under autocast to 16 bits
AGREEMENT, AUTOCAST_AGREEMENT = 1e-4, 1e-1


class Reversible(Gradient):
    """The discrete adjoint of the solver `Reversible`, whose steps are undone instead of kept.

    From the last pair (y, z) back to y0, with Phi and c of the solver: each step of Phi is computed once more, the
    earlier state follows from the later one, and the step is differentiated where it stands. This is exact:
    equal to `Backprop` through the same steps, but for the rounding of the recomputed states (`solvers.Reversible`
    says how that grows).

    Memory: two states and one step's intermediate results, whatever the number of steps. Time: each accepted step of
    Phi is computed once more. Random numbers (dropout, with fixed steps) and buffers are as in the forward pass; if a
    field draws or has any, they are kept with each step. Under error control, a field whose values depend on buffers
    that evaluations change (spectral norm in training) is refused. `SolveStats.backward.y0_error` is the relative error
    of the recomputed y0; above 0.01 % the gradient is refused.

    Do not use it for fields that contract strongly, for higher derivatives or `torch.func`; other solvers are refused.
    Where memory allows, `Checkpoint` with Phi as the solver is as exact, and stable, with half the evaluations.

    Source: McCallum and Foster 2024 (arXiv:2410.11648).
    """

    def solve(self, solver: Solver, problem: Problem) -> Solution:
        """See `Gradient.solve`.

        Raises:
            GradientError: also for any solver but `Reversible`, if a gradient is wanted.
        """
        if not torch.is_grad_enabled():
            return solver.solve(problem)  # any solver, as nothing is undone
        if not isinstance(solver, ReversibleSolver):
            raise GradientError(
                f"the gradient Reversible undoes the steps of the solver Reversible, and {solver!r} has no such steps: "
                "use the solver Reversible with a method such as Midpoint, or the gradient Checkpoint"
            )
        field, y0 = problem.field, problem.y0
        recomputed = Recomputation(field, y0)
        taken: list[Step] = []

        def record(step: Step) -> Step:
            surroundings = Surroundings.of(field, y0, taken[-1].context if taken else None)
            taken.append(replace(step, y=y0.new_empty(0), context=surroundings))
            return taken[-1]

        with refusing_transforms("Reversible"):
            with torch.no_grad():
                pair = solver.solve_pair(replace(problem, record=record))
            recomputed.solved(problem)
            if solver.controls_error:
                recomputed.refuse_changed_values(problem)
            y1 = _Undo.apply(solver, problem.t1 - problem.t0, recomputed, [pair], y0, *inputs_of(field))
        return Solution(y1, replace(pair.stats, backward=recomputed.stats))


class _Undo(torch.autograd.Function):
    """y0 -> y1 over recorded steps, undone and differentiated one by one."""

    @staticmethod
    def forward(
        ctx: Any,
        solver: ReversibleSolver,
        span: float,
        field: Recomputation,
        solved: list[Solution],
        y0: Tensor,
        *params: Tensor,
    ) -> Tensor:
        (pair,) = solved
        ctx.method, ctx.coupling = solver.method, solver.coupling_over(span)
        ctx.field, ctx.steps, ctx.start = field, pair.steps, sample(y0)
        ctx.save_for_backward(*params)
        if not pair.steps:
            return y0.clone()
        ctx.end, ctx.pair = sample(pair.y[0]), [Kept(0, state.clone()) for state in pair.y]
        return pair.y[0].clone()  # a later layer may change it in place

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives("Reversible")
        (by_y,) = cotangents
        field, method = ctx.field, ctx.method
        saved = ctx.saved_tensors
        if not ctx.steps:
            return (*[None] * 4, by_y, *[None] * len(saved))
        y, z = (kept.state for kept in ctx.pair)
        if not graph_is_kept():
            ctx.pair = None  # frees their memory for the earlier states
        params = field.tensors(saved)
        totals: list[Tensor | None] = [None] * len(params)
        now = Surroundings.of(field, by_y)
        by_z = torch.zeros_like(by_y)
        for number, step in reversed(list(enumerate(ctx.steps))):
            is_from_z = number % 2 == 0
            with field.as_at(step.context):
                state = (z if is_from_z else y).detach().requires_grad_()
                output = method.advance(field, step.t, step.h, state)
            field.check_leaves(output, (state, *params))
            by_state, grads = vector_jacobian(output, state, params, by_y if is_from_z else -by_z)
            totals = [add(total, grad) for total, grad in zip(totals, grads, strict=True)]
            end = output.detach()
            if is_from_z:  # y' = c (y - z) + Phi(z)
                c = ctx.coupling(step.h)
                y = z + (y - end) / c
                by_y, by_z = c * by_y, by_z + by_state - c * by_y
            else:  # z' = z + y - Phi(y)
                z = z - y + end
                by_y = by_y + by_z + by_state
        now.set_random()
        refuse_lost_start(field, method, ctx.start, ctx.end, (y, z))
        return (*[None] * 4, by_y + by_z if ctx.needs_input_grad[4] else None, *totals)


def refuse_lost_start(
    field: Recomputation, method: Solver, start: Tensor, end: Tensor, found: tuple[Tensor, Tensor]
) -> None:
    """Note how far the recomputed states at t0 are from y0, and refuse a gradient that is as far off."""
    size = torch.maximum(rms_norm(start), rms_norm(end)).clamp_min(torch.finfo(start.dtype).tiny)
    field.stats.y0_error = float(torch.stack([rms_norm(sample(x) - start) for x in found]).max() / size)
    # NaN passes: the loss is checked for it
    if field.stats.y0_error > (AUTOCAST_AGREEMENT if field.autocast else AGREEMENT):
        raise GradientError(
            f"Reversible recomputed y0 with a relative error of {field.stats.y0_error:.2g}, so its gradient cannot be "
            f"trusted: either {field.__qualname__} contracts too strongly for so many steps to be undone (a coupling "
            "nearer to 1, fewer steps or float64 help), or it gives other values when evaluated again (a counter, a "
            f"cache, a generator of its own?); use the gradient Checkpoint with the solver {method!r}"
        )
