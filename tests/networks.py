"""Images and networks to test."""

from typing import Any

import torch
from torch import nn

from odenet_lightning.models import (
    Classifier,
)


def make(net: type[Classifier], **options: Any) -> Any:
    """A network whose weights are all random: fresh norms, being 1 and 0, would hide a wrong one."""
    torch.manual_seed(0)
    made = net(**options)
    for module in made.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return made
