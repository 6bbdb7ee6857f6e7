"""Tensors that a field keeps from one evaluation for the next ones, and what would pass through them.

Only `Backprop` differentiates by them: elsewhere the forward pass makes them without gradients.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from odenet_lightning.gradients.leaves import nodes_behind
from odenet_lightning.solvers import VectorField
from odenet_lightning.solvers.evaluation import evaluate

# attributes of every module, such as its parameters and hooks; buffers may be made late
TORCHS_OWN = frozenset(vars(nn.Module())) - {"_buffers"}


def is_spent(x: Tensor) -> bool:
    """Whether a tensor is of a `torch.vmap` that has ended, so that nothing can be done with it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]


def copied(value: Any, own: bool) -> Any:
    """An attribute with containers of its own; of the tensors in them, too, if `own`."""
    if isinstance(value, Tensor):
        return value.detach().clone() if own and not (is_spent(value) or value.requires_grad) else value
    if isinstance(value, dict | list | deque):
        filled = copy(value)
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            filled[key] = copied(held, own)
        return filled
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The real tensors of an attribute, also those in its containers."""
    if isinstance(value, Tensor):
        if not is_spent(value) and value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple | deque | set):
        for held in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(held)


class Held:
    """What the attributes of a field's modules hold before a solve."""

    def __init__(self, field: VectorField) -> None:
        self.field = field
        modules = field.named_modules() if isinstance(field, nn.Module) else ()
        self.attributes = [(path, module, copied(own_attributes(module), False)) for path, module in modules]
        self.known = {id(x) for _, _, held in self.attributes for x in tensors_in(held)}

    def new(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are held now and were not before, by the names of the attributes."""
        for path, module, _ in self.attributes:
            attributes = own_attributes(module)
            for name, value in {**attributes.pop("_buffers"), **attributes}.items():
                for x in tensors_in(value):
                    if id(x) not in self.known:
                        yield f"{path}.{name}".strip("."), x

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Have the field hold what it held before; what is changed meanwhile is forgotten."""
        now = [(module, own_attributes(module)) for _, module, _ in self.attributes]
        try:
            for _, module, held in self.attributes:
                exchange(module, copied(held, True))
            yield
        finally:
            for module, held in now:
                exchange(module, held)

    def lost(self, times: tuple[float, float], y: Tensor) -> str | None:
        """The name of a tensor of the first evaluation of a solve by which a later one is to be differentiated.

        Args:
            times: of the first evaluation, and of a later one.
            y: a state.
        """
        with self.restored(), torch.enable_grad():
            first = y.detach().requires_grad_()
            evaluate(self.field, times[0], first)
            made: dict[Any, str] = {x.grad_fn or x: name for name, x in self.new() if x.requires_grad}
            if not made:
                return None
            for time in reversed(times):  # at the first one again, since what is kept may be kept by its time
                output = evaluate(self.field, time, y.detach().requires_grad_())
                for node in nodes_behind(output):
                    name = made.get(node) or made.get(getattr(node, "variable", None))
                    if name is not None:
                        return name
        return None


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes beside those of every module, but with its buffers."""
    return {name: value for name, value in vars(module).items() if name not in TORCHS_OWN}


def exchange(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Put others in the place of `own_attributes`."""
    for name in own_attributes(module):
        del module.__dict__[name]
    module.__dict__.update(attributes)
