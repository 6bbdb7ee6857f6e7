"""The first step sizes that a network's ODE blocks would try next: part of a run's state, but not of its weights."""

from collections.abc import Sequence

from odenet_lightning.models import Classifier


def warm_steps(net: Classifier) -> list[float | None]:
    """Each block's, in units of t; None where its solver has not left one."""
    return [block.warm_step for block in net.ode_blocks]


def set_warm_steps(net: Classifier, steps: Sequence[float | None]) -> None:
    """Have the blocks start with these; of another network's, as many as there are."""
    for block, step in zip(net.ode_blocks, steps, strict=False):
        block.warm_step = step
