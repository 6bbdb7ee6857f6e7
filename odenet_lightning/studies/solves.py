"""What a network's solves cost, for studies that count evaluations."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import nn

from odenet_lightning.models import Classifier


@contextmanager
def recorded_solves(net: Classifier) -> Iterator[list[Any]]:
    """Collect each solve's `SolveStats`, `backward` among them (None where the backward pass evaluates no field)."""
    solves: list[Any] = []

    def note(block: nn.Module, *_: object) -> None:
        record: Any = block.solves[-1]  # pyright: ignore[reportIndexIssue]
        solves.append(SimpleNamespace(**vars(record.forward), backward=record.backward))

    handles = [block.register_forward_hook(note) for block in net.ode_blocks]
    try:
        yield solves
    finally:
        for handle in handles:
            handle.remove()
