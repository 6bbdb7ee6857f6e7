"""Tensors that a field depends on without their being parameters of it, so that they would get no gradient."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from odenet_lightning.solvers import FieldError, VectorField
from odenet_lightning.solvers.evaluation import evaluate, name_of

TORCHS_OWN = frozenset(vars(nn.Module()))  # attributes of every module: its parameters, buffers, hooks


def held_tensors(field: VectorField) -> Iterator[tuple[str, Tensor]]:
    """The real tensors that the field's modules hold as plain attributes, or in a list, tuple or dict that is one."""
    for path, module in field.named_modules() if isinstance(field, nn.Module) else ():
        for name, value in vars(module).items():
            if name in TORCHS_OWN:
                continue
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            for x in held:
                if isinstance(x, Tensor) and x.is_floating_point():
                    yield f"{path}.{name}".strip("."), x


def lost_gradients(field: VectorField, t: float, y: Tensor, kept: Mapping[str, Tensor]) -> list[str]:
    """Which of the tensors that a field keeps from a forward pass without gradients would have had one.

    Found by an evaluation of a copy of the field, without those tensors.
    """
    if not kept or not isinstance(field, nn.Module):
        return []
    try:
        computed = [*kept.values(), *(x for _, x in held_tensors(field) if not x.is_leaf)]  # torch copies leaves only
        twin = copy.deepcopy(field, {id(x): None for x in computed})
        with torch.enable_grad():
            evaluate(twin, t, y.detach())
    except Exception:  # whatever it says: without them it does not work
        return list(kept)
    return [name for name, x in held_tensors(twin) if name in kept and x.requires_grad]


def refuse_unknown_leaves(field: VectorField, output: Tensor, known: Sequence[Tensor]) -> None:
    """Refuse a field that depends on a tensor which requires a gradient and is not among its parameters.

    Raises:
        FieldError: `tensor` is the one that would have got no gradient.
    """
    seen, waiting = set(), [output.grad_fn]
    leaves = {id(tensor) for tensor in known}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate a leaf's gradient
        if leaf is not None and id(leaf) not in leaves:
            raise UnknownTensorError(field, leaf)
        waiting.extend(following for following, _ in node.next_functions)


class UnknownTensorError(FieldError):
    """A field depends on a tensor that requires a gradient and is not among its parameters.

    Attributes:
        tensor: that tensor.
    """

    def __init__(self, field: VectorField, tensor: Tensor, name: str = "") -> None:
        self.field, self.tensor = field, tensor
        called = f"{name}, " if name else ""
        super().__init__(
            f"{name_of(field)} uses a tensor ({called}shape {list(tensor.shape)}) that is no parameter of it, so it "
            "would get no gradient: register the layer or parameter that it belongs to as an attribute of the field "
            "(layers in a list: nn.ModuleList), or use Backprop"
        )


def refuse_unknown_inputs(field: VectorField, t: float, y0: Tensor) -> None:
    """`refuse_unknown_leaves` where neither y0 nor a parameter requires a gradient, by one evaluation.

    No backward pass would run, so nothing else would notice.
    """
    with torch.enable_grad():
        output = evaluate(field, t, y0.detach())
    refuse_unknown_leaves(field, output, ())
