"""Tensors that a field depends on without their being parameters of it, so that they would get no gradient."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from odenet_lightning.solvers import FieldError, VectorField
from odenet_lightning.solvers.evaluation import name_of


def nodes_behind(output: Tensor) -> Iterator[Any]:
    """All that a result was computed by, as nodes of autograd's graph."""
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


def refuse_unknown_leaves(field: VectorField, output: Tensor, known: Sequence[Tensor]) -> None:
    """Refuse a field that depends on a tensor which requires a gradient and is not among its parameters."""
    leaves = {id(tensor) for tensor in known}
    for node in nodes_behind(output):
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate a leaf's gradient
        if leaf is not None and id(leaf) not in leaves:
            raise UnknownTensorError(field, leaf)


class UnknownTensorError(FieldError):
    """A field depends on a tensor that requires a gradient and is not among its parameters."""

    def __init__(self, field: VectorField, tensor: Tensor, name: str = "") -> None:
        self.field, self.tensor = field, tensor
        called = f"{name}, " if name else ""
        super().__init__(
            f"{name_of(field)} uses a tensor ({called}shape {list(tensor.shape)}) that is no parameter of it, so it "
            "would get no gradient: register the layer or parameter that it belongs to as an attribute of the field "
            "(layers in a list: nn.ModuleList), or use Backprop"
        )
