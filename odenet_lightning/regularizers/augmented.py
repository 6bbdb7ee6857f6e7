"""The augmented state z = (y, e): y and one more number per image, in which a regularizer accumulates its value."""

import torch
from torch import Tensor


def joined(y: Tensor, e: Tensor) -> Tensor:
    """The state z = (y, e), `[B, N + 1]`, of y, `[B, ...]`, with N entries per image, and e, `[B]`."""
    return torch.cat([y.flatten(1), e.unsqueeze(1)], 1)


def parts(z: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """y, of the given shape, and e; contiguous, as kernels need it."""
    return z[:, :-1].contiguous().view(shape), z[:, -1]
