"""Activation checkpointing, the discrete adjoint: the solver's steps recomputed and differentiated one by one."""

from collections.abc import Callable, Iterator, Sequence
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
from odenet_lightning.gradients.binomial import Kept, backwards, graph_is_kept, places
from odenet_lightning.gradients.recompute import Recomputation, Surroundings, add, inputs_of, sample
from odenet_lightning.solvers import AdaptiveRungeKutta, FieldError, Problem, Solution, Solver, Step, VectorField
from odenet_lightning.solvers.evaluation import name_of
from odenet_lightning.solvers.settings import check_whole

# how far a recomputed step may differ, relative to the state: other kernels round differently (by 1e-7 on the CPU; a
# GPU's convolutions have 10 bits), and autocast rounds to 16 bits
AGREEMENT, CPU_AGREEMENT, AUTOCAST_AGREEMENT = 1e-3, 1e-5, 1e-1


class Checkpoint(Gradient):
    """The discrete adjoint: keep the accepted states, redo and differentiate each step in the backward pass.

    With steps y_{n+1} = Phi_n(y_n, theta) and a_N = dL/dy_N, going back over n:
    a_n = a_{n+1} dPhi_n/dy and dL/dtheta += a_{n+1} dPhi_n/dtheta. This is exact: equal to
    `Backprop` to rounding, since it differentiates the very same steps. This is the discrete analogue of the
    adjoint method, simpler than the continuous one and without its error.

    Memory: one state per accepted step, or `slots` states whatever the number of steps, plus one step's intermediate
    results. Time: each accepted step is computed once more; with fewer slots than steps, some are computed several
    times. N steps in s slots cost t(s, N + 1) of them, t(s, l) = r l - C(s + r, r - 1) with the smallest r for which l
    <= C(s + r, s): binomial checkpointing, the fewest possible. Under error control N is known only at the end, so the
    forward pass keeps y0 alone, and N + t(s, N) steps are computed. Rejected steps cost nothing in the backward pass.
    Random numbers (dropout, with fixed steps) and buffers are kept with each step, as in `torch.utils.checkpoint`; a
    step that differs when recomputed is refused. Under error control, so is a field whose values depend on buffers that
    evaluations change (spectral norm in training).

    Do not use it when memory is no concern (`Backprop` is usually faster), nor for higher derivatives or `torch.func`.
    `slots` does not help with `TorchDiffEq` and `Reversible`, whose solves are recomputed whole.

    Sources: Gholami, Keutzer, Biros 2019 (ANODE, arXiv:1902.10298); Zhuang et al. 2020 (ACA,
    arXiv:2006.02493); Griewank and Walther 2000 (Revolve, ACM TOMS 26) on slots.
    """

    def __init__(self, slots: int | None = None) -> None:
        """Keep all states by default.

        Args:
            slots: the largest number of states kept at a time, y0 included, at least 1.
        """
        if slots is not None:
            check_whole("Checkpoint's slots", slots)
        self.slots = slots if slots is None else int(slots)

    def solve(self, solver: Solver, problem: Problem) -> Solution:
        """See `Gradient.solve`."""
        field, y0 = problem.field, problem.y0
        if not torch.is_grad_enabled():
            return solver.solve(problem)
        recomputed = Recomputation(field, y0)
        with refusing_transforms("Checkpoint"):
            with torch.no_grad():
                taken = _Taken(field, y0, self.slots, solver.steps_over(problem.t1 - problem.t0))
                solution = solver.solve(replace(problem, record=taken.record))
            recomputed.solved(problem)
            if isinstance(solver, AdaptiveRungeKutta) and solver.controls_error:
                recomputed.refuse_changed_values(problem)
            y1 = _Replay.apply(solver, recomputed, taken, [solution], y0, *inputs_of(field))
        return Solution(y1, replace(solution.stats, backward=recomputed.stats))


class _Taken:
    """The steps that a solve took, for the backward pass; their states, or some of them, are kept apart.

    Args:
        field: f(t, y).
        y0: the first state.
        slots: number of states that may be kept at a time; None for all.
        steps: number of steps, if it is known in advance.
    """

    def __init__(self, field: VectorField, y0: Tensor, slots: int | None, steps: int | None) -> None:
        self.field, self.y0, self.slots = field, y0, slots
        self.chosen = set() if slots is None or steps is None else set(places(steps, slots))
        self.steps: list[Step] = []
        self.starts: list[Tensor] = []  # until the end, where each image takes steps of its own
        self.ends: list[Tensor] = []
        self.kept: list[Kept] = []

    def record(self, step: Step) -> Step:
        """See `Problem.record`."""
        place, is_of_each = len(self.steps), isinstance(step.t, Tensor)
        if is_of_each and self.slots is not None:
            raise GradientError(
                "Checkpoint's slots are for steps that all images take together: leave them out, or per_sample"
            )
        if is_of_each:
            self.starts.append(step.y)
        elif place > 0:
            self.ends.append(sample(step.y))
        if is_of_each or (place > 0 and (self.slots is None or place in self.chosen)):
            self.kept.append(Kept(place, step.y))
        surroundings = Surroundings.of(self.field, self.y0, self.steps[-1].context if self.steps else None)
        self.steps.append(replace(step, y=step.y.new_empty(0), context=surroundings))
        return self.steps[-1]

    def end(self, y1: Tensor) -> None:
        """Note where the last step ends, or, if each image takes steps of its own, where every step ends."""
        if not (self.steps and isinstance(self.steps[0].t, Tensor)):
            self.ends.append(sample(y1))
            return
        for step in reversed(self.steps):
            start = self.starts.pop()
            self.ends.append(sample(y1 if step.images is None else y1[step.images]))
            y1 = start if step.images is None else y1.index_copy(0, step.images, start)
        self.ends.reverse()

    def backwards(self, y0: Tensor, take: Callable[[int, Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """See `binomial.backwards`."""
        slots = self.slots or len(self.steps) + 1
        return backwards(y0, list(self.kept) if graph_is_kept() else self.kept, len(self.steps), slots, take)


class _Replay(torch.autograd.Function):
    """y0 -> y1 over recorded steps, differentiated by replaying them in reverse order."""

    @staticmethod
    def forward(
        ctx: Any,
        solver: Solver,
        field: Recomputation,
        taken: _Taken,
        solved: list[Solution],
        y0: Tensor,
        *params: Tensor,
    ) -> Tensor:
        (solution,) = solved  # in a list, or its state would count as an input
        ctx.solver, ctx.field, ctx.taken = solver, field, taken
        taken.end(solution.y)
        # saved, so that autograd reports parameters that are changed in place before the backward pass
        ctx.save_for_backward(y0, *params)
        # a tensor of its own: a later layer may change it in place
        return solution.y.clone() if solution.y is y0 else solution.y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives("Checkpoint")
        (cotangent,) = cotangents
        field, taken = ctx.field, ctx.taken
        y0, *saved = ctx.saved_tensors  # once: torch.utils.checkpoint gives them out a single time
        params = field.tensors(saved)
        totals: list[Tensor | None] = [None] * len(params)
        now = Surroundings.of(field, cotangent)
        deviations = []

        def replay(place: int, y: Tensor) -> Tensor:
            return ctx.solver.replay(field, replace(taken.steps[place], y=y))

        def take(place: int, y: Tensor) -> Tensor:
            with field.as_at(taken.steps[place].context), torch.no_grad():
                return replay(place, y)

        for place, state in taken.backwards(y0, take):
            step = taken.steps[place]
            with field.as_at(step.context):
                y = state.detach().requires_grad_()
                output = replay(place, y)
            field.check_leaves(output, (y, *params))
            deviations.append(deviation(output, taken.ends[place]))
            of_these = cotangent if step.images is None else cotangent[step.images]
            by_state, grads = vector_jacobian(output, y, params, of_these)
            cotangent = by_state if step.images is None else cotangent.index_copy(0, step.images, by_state)
            totals = [add(total, grad) for total, grad in zip(totals, grads, strict=True)]
        now.set_random()
        refuse_other_steps(field, deviations)
        return (*[None] * 4, cotangent if ctx.needs_input_grad[4] else None, *totals)


def deviation(output: Tensor, end: Tensor) -> Tensor:
    """How far a recomputed step differs from the one in the forward pass, relative to the state."""
    return (sample(output) - end).abs().max() / end.abs().max().clamp(min=torch.finfo(end.dtype).tiny)


def refuse_other_steps(field: Recomputation, deviations: Sequence[Tensor]) -> None:
    """Refuse a gradient of steps that the forward pass did not take; this synchronises device and host once."""
    largest = float(torch.stack(list(deviations)).max()) if deviations else 0.0
    agreement = CPU_AGREEMENT if field.device_type == "cpu" else AGREEMENT
    # NaN passes: the loss is checked for it
    if largest > (AUTOCAST_AGREEMENT if field.autocast else agreement):
        raise FieldError(
            f"{name_of(field)} gave other values when Checkpoint evaluated it again (a step's end is off by "
            f"{100 * largest:.2g}%), so it depends on something beside t, y, its parameters, buffers and torch's "
            "random numbers that has changed (a counter, a cache, a generator of its own?): use Backprop, or remove "
            "that"
        )
