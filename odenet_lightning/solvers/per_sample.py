"""Adaptive steps of each image by itself: every image has its own time, step size, error control and end.

The controller's numbers are on the host, in float64, one for each image that is not yet at t1. An attempted step
costs one device-to-host synchronisation, for the images' error ratios, and another if one is not finite. An image at
t1 leaves the batch; one whose step is rejected tries again in the next attempt, together with the others.

Source: Lienen and Guennemann, "torchode: A Parallel ODE Solver for PyTorch", 2022, arXiv:2210.12375.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odenet_lightning.solvers.evaluation import evaluate, host_values
from odenet_lightning.solvers.first_step import guess_first_step
from odenet_lightning.solvers.image_costs import ImageCosts
from odenet_lightning.solvers.own_time import refuse_shared_time
from odenet_lightning.solvers.problem import Norm, Problem, Solution, SolverError, Step, rms_norm
from odenet_lightning.solvers.runge_kutta import RungeKutta, fused_step, plan_of
from odenet_lightning.solvers.stopping import NOT_FINITE, TOO_SMALL, smallest_step, stopped

if TYPE_CHECKING:
    from odenet_lightning.solvers.adaptive import AdaptiveRungeKutta


def column(values: Tensor, like: Tensor) -> Tensor:
    """One number per image as `[B, 1, ...]`, in the dtype and on the device of a state."""
    return values.to(like.dtype).to(like.device, non_blocking=True).view(-1, *[1] * (like.dim() - 1))


def norm_of_each(norm: Norm) -> Norm:
    """From the norm of one image, the norms of all images of a batch, `[B, 1, ...]`."""

    def of_each(x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1)
        sizes = flat.square().mean(1).sqrt() if norm is rms_norm else torch.vmap(norm)(x)
        return sizes.view(-1, *[1] * (x.dim() - 1))

    return of_each


class PerSampleSolve:
    """The state of one solve.

    Attributes:
        images: indices in the batch of the images not yet at t1.
        t: their times.
        costs: of all images of the batch.
    """

    def __init__(self, method: "AdaptiveRungeKutta", problem: Problem) -> None:
        self.method, self.problem = method, problem
        self.norm = norm_of_each(problem.norm)
        self.sign = 1.0 if problem.t1 > problem.t0 else -1.0
        self.span = abs(problem.t1 - problem.t0)
        count = len(problem.y0)
        self.images = torch.arange(count)
        self.t = torch.full((count,), problem.t0, dtype=torch.float64)
        self.costs = ImageCosts(count, len(method.tableau.c))
        self.steps: list[Step] = []
        self.ended: list[tuple[Tensor, Tensor]] = []

    def run(self) -> Solution:
        """Step until every image is at t1."""
        problem = self.problem
        y, k0 = problem.y0, evaluate(problem.field, problem.t0, problem.y0)
        self.costs.begun = 1
        refuse_shared_time(problem)
        h = self.first_steps(k0)
        while True:
            left = self.sign * (problem.t1 - self.t)
            is_last = 1.01 * h >= left
            h = torch.where(is_last, left, h)
            self.check(y, h)
            step = Step(column(self.t, y), column(self.sign * h, y), y)
            y1, ks, ratio = self.attempt(step, k0)
            if not (is_finite := bool(ratio.isfinite().all())):
                self.refuse_infinite(y, k0, h)
            accepted, grown = ratio <= 1.0, h * self.factors(ratio)
            arrived = accepted & is_last
            self.costs.add(self.images, (h, grown.clamp(max=self.span)), accepted, arrived)
            self.keep(step, y1, ks, accepted)
            y, k0 = self.chosen(step, (y1, ks[-1]), k0, accepted, is_finite)
            self.t, h = torch.where(accepted, self.t + self.sign * h, self.t), grown
            if arrived.any():
                self.ended.append((self.images[arrived], taken(y, arrived)))
                self.images, self.t, h = self.images[~arrived], self.t[~arrived], h[~arrived]
                if not len(self.images):
                    return Solution(self.together(), self.costs.stats(), self.steps)
                y, k0 = taken(y, ~arrived), taken(k0, ~arrived)

    def attempt(self, step: Step, k0: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Try a step: the new states, the stages (a kernel gives the last one only), and the error ratios."""
        method, problem = self.method, self.problem
        self.costs.attempts += 1
        if problem.norm is rms_norm and problem.observe is None:
            tolerance = (method.rtol, method.atol)
            fused = fused_step(problem.field, plan_of(method.tableau, True), step.h, step.y, k0, tolerance)
            if fused is not None and fused.k_last is not None:
                return fused.y1, [fused.k_last], fused.error_ratios
        y1, ks = method.step(problem.field, step.t, step.h, step.y, k0, with_end=True)
        return y1, ks, host_values(method.error_ratio(step.y, y1, ks, step.h, self.norm))

    def first_steps(self, k0: Tensor) -> Tensor:
        """Sizes of the first steps; one synchronisation where they are guessed."""
        problem, method = self.problem, self.method
        first = problem.warm_step if method.first_step == "warm" else method.first_step
        if isinstance(first, float | int):
            return torch.full_like(self.t, min(float(first), self.span))
        h = host_values(guess_first_step(method, problem, k0, self.norm))
        self.costs.begun = 2
        if not h.isfinite().all():
            raise self.error(problem.y0, h, ~h.isfinite(), NOT_FINITE)
        return h

    def check(self, y: Tensor, h: Tensor) -> None:
        """Refuse another attempt that is beyond a limit."""
        method, problem = self.method, self.problem
        if bool((tiny := h <= smallest_step(y, problem.t0, problem.t1)).any()):
            raise self.error(y, h, tiny, TOO_SMALL)
        every = torch.ones_like(tiny)
        if self.costs.attempts >= method.max_steps:
            raise self.error(y, h, every, f"max_steps = {method.max_steps} steps were not enough")
        if self.costs.spent(self.costs.attempts + 1) > problem.max_nfe:
            raise self.error(y, h, every, f"max_nfe = {problem.max_nfe} evaluations were not enough")

    def refuse_infinite(self, y: Tensor, k0: Tensor, h: Tensor) -> None:
        """Refuse an image whose slope at the start of the step is NaN or infinite: a smaller step would not help."""
        largest = host_values(k0.reshape(len(k0), -1).abs().amax(1))
        if not largest.isfinite().all():
            raise self.error(y, h, ~largest.isfinite(), NOT_FINITE)

    def factors(self, ratio: Tensor) -> Tensor:
        """How much larger the images' next steps may be; see `AdaptiveRungeKutta.step_factor`."""
        method = self.method
        lowest = torch.where(ratio < 1.0, 1.0, method.min_factor)
        wanted = (method.safety / ratio ** (1 / method.tableau.order)).nan_to_num(nan=0.0)
        return torch.maximum(wanted, lowest).clamp(max=method.max_factor)

    def keep(self, step: Step, y1: Tensor, ks: list[Tensor], accepted: Tensor) -> None:
        """Pass the step of the accepted images to `Problem.record` and `Problem.observe`."""
        problem = self.problem
        if (problem.record is None and problem.observe is None) or not accepted.any():
            return
        whole = len(self.images) == len(problem.y0) and bool(accepted.all())
        images = None if whole else self.images[accepted].to(step.y.device, non_blocking=True)
        step = replace(part(step, accepted), images=images)
        if problem.record is not None:
            self.steps.append(problem.record(step))
        if problem.observe is not None:
            problem.observe(step, taken(y1, accepted), [taken(k, accepted) for k in ks])

    def chosen(
        self, step: Step, result: tuple[Tensor, Tensor], k0: Tensor, accepted: Tensor, is_finite: bool
    ) -> tuple[Tensor, Tensor]:
        """Each image's state and slope: the new ones where its step was accepted."""
        (y1, k1), y = result, step.y
        if accepted.all():
            return y1, k1
        if is_finite or not y1.requires_grad:
            mask = column(accepted, y).bool()
            return torch.where(mask, y1, y), torch.where(mask, k1, k0)
        if not accepted.any():
            return y, k0
        # through torch.where, a rejected image's NaN would reach the parameters' gradients: repeat the step without it
        rows, right = torch.nonzero(accepted).flatten().to(y.device), part(step, accepted)
        y1, ks = self.method.step(self.problem.field, right.t, right.h, right.y, taken(k0, accepted), with_end=True)
        return y.index_copy(0, rows, y1), k0.index_copy(0, rows, ks[-1])

    def together(self) -> Tensor:
        """The states at t1, in the order of the batch."""
        images, states = zip(*self.ended, strict=True)
        if len(states) == 1:
            return states[0].clone()  # a kernel keeps it, and a later layer may change it
        return torch.cat(states)[torch.cat(images).argsort().to(states[0].device, non_blocking=True)]

    def error(self, y: Tensor, h: Tensor, which: Tensor, what: str) -> SolverError:
        """The error for the first of the given images."""
        row, method = int(torch.nonzero(which)[0]), self.method
        name = f"{type(method).__name__} at image {int(self.images[row])} of the batch"
        at = (float(self.t[row]), float(h[row]))
        return stopped(name, (method.rtol, method.atol), at, y[row], self.costs.spent(self.costs.attempts), what)


def taken(x: Tensor, which: Tensor) -> Tensor:
    """The rows that a mask on the host selects; x itself if these are all."""
    return x if which.all() else x[torch.nonzero(which).flatten().to(x.device, non_blocking=True)]


def part(step: Step, which: Tensor) -> Step:
    """The step of the images that a mask selects."""
    assert isinstance(step.t, Tensor)
    assert isinstance(step.h, Tensor)
    return Step(taken(step.t, which), taken(step.h, which), taken(step.y, which))


def state_of_each(method: RungeKutta, problem: Problem, solution: Solution, time: float) -> Tensor:
    """The images' states at a time within the interval; see `Solver.state_at`."""
    y = solution.y.clone()
    missing = torch.ones(len(y), dtype=torch.bool)
    for step in solution.steps:
        images = torch.arange(len(y)) if step.images is None else step.images.cpu()
        fraction = torch.as_tensor((time - step.t) / step.h).flatten().cpu()
        inside = (fraction <= 1.0) & missing[images]
        if inside.any():
            here = replace(part(step, inside), fraction=column(fraction[inside], y))
            y[images[inside].to(y.device)] = method.replay(problem.field, here)
            missing[images[inside]] = False
    return y
