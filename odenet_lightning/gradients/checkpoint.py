"""Activation checkpointing, the discrete adjoint: the solver's steps recomputed and differentiated one by one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odenet_lightning.gradients.base import (
    Gradient,
    refuse_second_derivatives,
    refusing_transforms,
    vector_jacobian,
)
from odenet_lightning.gradients.recompute import Recomputation, Surroundings, inputs_of, refuse_unknown_inputs
from odenet_lightning.solvers import FieldError, Problem, Solution, Solver
from odenet_lightning.solvers.evaluation import name_of

SAMPLED = 64  # entries of each step's end that are kept, to detect a step that differs when recomputed
# how far those may differ, relative to the state: rounding of other kernels, in 16 bits under autocast
AGREEMENT, AUTOCAST_AGREEMENT = 1e-3, 1e-1


class Checkpoint(Gradient):
    """The discrete adjoint: keep the accepted states, redo and differentiate each step in the backward pass.

    With steps y_{n+1} = Phi_n(y_n, theta) and a_N = dL/dy_N, going back over n:
    a_n = a_{n+1} dPhi_n/dy and dL/dtheta += a_{n+1} dPhi_n/dtheta. Exact: equal to `Backprop` to
    rounding, since it differentiates the very same steps. This is the discrete analogue of the
    adjoint method, simpler than the continuous one and without its error.

    Memory: one state per accepted step, plus one step's intermediate results, whatever the number of
    steps. Time: about one more evaluation for each one of the accepted steps. Rejected steps cost
    nothing in the backward pass. Random numbers (dropout, with fixed steps) and buffers are kept with each step,
    as in `torch.utils.checkpoint`; a step that differs when recomputed is refused.

    Not when memory is no concern (`Backprop` is faster), nor for higher derivatives or `torch.func`.

    Sources: Gholami, Keutzer, Biros 2019 (ANODE, arXiv:1902.10298); Zhuang et al. 2020 (ACA,
    arXiv:2006.02493); Griewank 1992 on checkpointing.
    """

    def solve(self, solver: Solver, problem: Problem) -> Solution:
        """See `Gradient.solve`."""
        field, y0 = problem.field, problem.y0
        if not torch.is_grad_enabled():
            return solver.solve(problem)
        params = inputs_of(field)
        recomputed = Recomputation(field, y0)
        with refusing_transforms("Checkpoint"):
            with torch.no_grad():
                solution = solver.solve(replace(problem, record=lambda: Surroundings.of(field, y0)))
            if not any(x.requires_grad for x in (y0, *params)):
                refuse_unknown_inputs(field, problem.t0, y0)
            y1 = _Replay.apply(solver, recomputed, [solution], y0, *params)
        return Solution(y1, replace(solution.stats, backward=recomputed.stats))


def sample(y: Tensor) -> Tensor:
    """A few entries of a state, spread evenly."""
    flat = y.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].clone()


def ends(solution: Solution) -> list[Tensor]:
    """A few entries of each step's end, at which the next step of the same images starts."""
    after, found = solution.y, []
    for step in reversed(solution.steps):
        found.append(sample(after if step.images is None else after[step.images]))
        after = step.y if step.images is None else after.index_copy(0, step.images, step.y)
    return found[::-1]


class _Replay(torch.autograd.Function):
    """y0 -> y1 over recorded steps, differentiated by replaying them in reverse order."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, field: Recomputation, solved: list[Solution], y0: Tensor, *params: Tensor
    ) -> Tensor:
        (solution,) = solved  # in a list, or its state would count as an input
        ctx.solver, ctx.field = solver, field
        ctx.ends = ends(solution)
        ctx.grid = [replace(step, y=y0.new_empty(0)) for step in solution.steps]
        # the parameters are saved to be told if they were changed in place in between
        ctx.save_for_backward(*(step.y for step in solution.steps), *params)
        # a tensor of its own: a later layer may change it in place
        return solution.y.clone() if solution.y is y0 else solution.y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives("Checkpoint")
        (cotangent,) = cotangents
        field: Recomputation = ctx.field
        kept = ctx.saved_tensors  # once: torch.utils.checkpoint gives them out a single time
        states, saved = kept[: len(ctx.grid)], kept[len(ctx.grid) :]
        params = field.tensors(saved)
        totals: list[Tensor | None] = [None] * len(params)
        now = Surroundings.of(field, cotangent)
        deviations = []
        steps = zip(reversed(ctx.grid), reversed(states), reversed(ctx.ends), strict=False)
        for step, state, end in steps:
            step.context.set_random()
            with field.as_in_forward(step.context.buffers):
                y = state.detach().requires_grad_()
                output = ctx.solver.replay(field, replace(step, y=y))
            field.check_leaves(output, (y, *params))
            deviations.append(deviation(output, end))
            of_these = cotangent if step.images is None else cotangent[step.images]
            grad_y, grads = vector_jacobian(output, y, params, of_these)
            cotangent = grad_y if step.images is None else cotangent.index_copy(0, step.images, grad_y)
            totals = [add(total, grad) for total, grad in zip(totals, grads, strict=True)]
        now.set_random()
        refuse_other_steps(field, deviations)
        return (None, None, None, cotangent if ctx.needs_input_grad[3] else None, *totals)


def deviation(output: Tensor, end: Tensor) -> Tensor:
    """How far a recomputed step differs from the one in the forward pass, relative to the state."""
    return (sample(output) - end).abs().max() / end.abs().max().clamp(min=torch.finfo(end.dtype).tiny)


def refuse_other_steps(field: Recomputation, deviations: Sequence[Tensor]) -> None:
    """Refuse a gradient of other steps than the forward pass took; one device-to-host synchronisation.

    Raises:
        FieldError: a step differs when recomputed.
    """
    largest = float(torch.stack(list(deviations)).max()) if deviations else 0.0
    if largest > (AUTOCAST_AGREEMENT if field.autocast else AGREEMENT):  # NaN is the loss's business
        raise FieldError(
            f"{name_of(field)} gave other values when Checkpoint evaluated it again (a step's end is off by "
            f"{largest:.1%}), so it depends on something beside t, y, its parameters, buffers and torch's random "
            "numbers that has changed (a counter, a cache, a generator of its own?): use Backprop, or remove that"
        )


def add(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may be missing."""
    if total is None or grad is None:
        return grad if total is None else total
    return total + grad
