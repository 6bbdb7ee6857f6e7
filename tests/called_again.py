"""A recorder for the CPU."""

from collections.abc import Callable
from typing import Any

from odenet_lightning.recording import Recorder


class CalledAgain(Recorder):
    """As in a CUDA graph, the numbers in the optimiser's groups stay those of the recording; tensors are read anew.

    Args:
        calls: notes how each step came about.
        waits: what rehearsals are to tell.
    """

    def __init__(self, calls: list[str], waits: bool) -> None:
        self.calls, self.waits = calls, waits

    def rehearse(self, function: Callable[[], None]) -> bool:
        self.calls.append("rehearsed")
        function()
        return self.waits

    def record(self, function: Any) -> None:
        self.calls.append("recorded")
        self.function, self.groups = function, function.__self__.function.__self__.optimizer.param_groups
        self.frozen = [dict(group) for group in self.groups]

    def repeat(self) -> None:
        self.calls.append("repeated")
        current = [dict(group) for group in self.groups]
        for groups in (self.frozen, current):
            for group, values in zip(self.groups, groups, strict=True):
                group.update(values)
            if groups is self.frozen:
                self.function()
