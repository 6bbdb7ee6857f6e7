"""When training diverges: the loss or the weights are NaN or infinite."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

REMEDY = "try a smaller learning rate, --trainer.gradient_clip_val 1, or an adaptive solver"


class DivergenceError(RuntimeError):
    """The loss or the weights are NaN or infinite."""


def refuse_loss(loss: Tensor, where: str) -> None:
    """End a run whose loss is NaN or infinite."""
    if not loss.isfinite():
        raise DivergenceError(f"the loss is {float(loss)} {where}: {REMEDY}")


def refuse_weights(weights: Mapping[str, Any], step: int | str) -> None:
    """Refuse to keep weights that are NaN or infinite over ones that are not."""
    for name, weight in weights.items():
        if isinstance(weight, Tensor) and not weight.isfinite().all():
            raise DivergenceError(f"the weights {name} are not finite after step {step}: {REMEDY}")
