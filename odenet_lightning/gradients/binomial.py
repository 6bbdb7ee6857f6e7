"""Binomial checkpointing: which states are kept, so that few of the others are computed again.

Source: Griewank and Walther 2000 (Algorithm 799: Revolve, ACM TOMS 26).
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import count
from math import comb
from typing import Any

import torch
from torch import Tensor


def split(steps: int, slots: int) -> int:
    """How many steps to take from a kept state to the next one to be kept, if steps are to be undone from the last on.

    With r the smallest number for which steps <= C(slots + r, slots), every step is then taken at most r times, and all
    of them together r steps - C(slots + r, r - 1) times, which is the fewest possible.

    Args:
        steps: number of steps from the kept state on, at least 2.
        slots: number of states that may be kept, the one at the start included, at least 2.
    """
    r = next(r for r in count(1) if steps <= comb(slots + r, slots))
    return max(1, comb(slots + r - 2, slots), steps - comb(slots - 1 + r, slots - 1))


def places(steps: int, slots: int) -> Iterator[int]:
    """Numbers of the steps whose first states are kept on the way to the last state, but for the first step."""
    at, left = 0, steps + 1  # the loss and what else follows is one more step to be undone
    while slots > 1 and left > 1:
        ahead = split(left, slots)
        at, left, slots = at + ahead, left - ahead, slots - 1
        if at < steps:
            yield at


class _Hold(torch.autograd.Function):
    """Saves a state as autograd saves tensors, so that hooks for saved tensors see it, too."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.new_empty(0)


class Kept:
    """A state that is kept."""

    def __init__(self, place: int, y: Tensor) -> None:
        self.place = place
        with torch.enable_grad():
            self.node: Any = _Hold.apply(y.detach().requires_grad_()).grad_fn  # pyright: ignore

    @cached_property
    def state(self) -> Tensor:
        """The state, unpacked once: torch.utils.checkpoint gives it out a single time."""
        return self.node.saved_tensors[0].detach()


def graph_is_kept() -> bool:
    """Whether the backward pass that runs has retain_graph=True, so that another one may follow."""
    return torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]


def backwards(
    y0: Tensor, kept: list[Kept], steps: int, slots: int, take: Callable[[int, Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """The steps' numbers and first states, from the last step to the first.

    Args:
        y0: first state of the first step.
        kept: further states, in the order of their steps; emptied.
        steps: number of steps.
        slots: number of states that may be kept at a time, y0 included.
        take: the state after a step, given the step's number and first state.
    """
    for wanted in reversed(range(steps)):
        while kept and kept[-1].place > wanted:
            kept.pop()
        at, y = (kept[-1].place, kept[-1].state) if kept else (0, y0)
        while at < wanted:
            free = slots - len(kept)  # the state that it starts from included
            end = min(at + split(wanted + 1 - at, free), wanted) if free > 1 else wanted
            for place in range(at, end):
                y = take(place, y)
            at = end
            if at < wanted:
                kept.append(Kept(at, y))
        yield wanted, y
