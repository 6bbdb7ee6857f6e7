"""Memory that a training step takes, counted tensor by tensor: the same on every machine and with every allocator."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from odenet_lightning.models import Classifier


class LiveBytes(TorchDispatchMode):
    """Bytes of the live tensors made since it began: `now`, and at most, `peak`.

    A context manager. Each storage counts once, from the operation that made it until nothing refers to it. What a
    kernel allocates and frees within an operation is not seen, nor what an allocator keeps or wastes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count the storages that it made."""
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._made(leaf.untyped_storage())
        return result

    def _made(self, storage: torch.UntypedStorage) -> None:
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, nbytes: int) -> None:
        self.now -= nbytes


class HeldBytes:
    """Bytes of the tensors that autograd keeps for the backward pass: `now`, and at most, `peak`.

    A context manager. Each storage counts once; parameters, which exist anyway, do not count.
    """

    def __init__(self, net: Classifier) -> None:
        self.ignored = {p.untyped_storage().data_ptr() for p in net.parameters()}
        self.users: dict[int, int] = {}
        self.now = self.peak = 0
        self.hooks: Any = torch.autograd.graph.saved_tensors_hooks(lambda t: _Held(self, t), lambda held: held.tensor)

    def __enter__(self) -> "HeldBytes":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def change(self, tensor: Tensor, by: int) -> None:
        """Count one user of a tensor's storage more or less."""
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        if pointer in self.ignored:
            return
        users = self.users.pop(pointer, 0)
        if users + by > 0:
            self.users[pointer] = users + by
        if min(users, users + by) == 0:
            self.now += by * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Held:
    """A tensor kept for the backward pass, counted while it lives."""

    def __init__(self, count: HeldBytes, tensor: Tensor) -> None:
        self.count, self.tensor = count, tensor.detach()
        count.change(self.tensor, 1)

    def __del__(self) -> None:
        self.count.change(self.tensor, -1)
