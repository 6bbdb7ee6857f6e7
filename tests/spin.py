"""A field whose images take different steps."""

import torch
from torch import Tensor, nn


class Spin(nn.Module):
    """dy/dt = rate cos(t) (-y_2, y_1) - decay y, for images `[B, 2, n]`; the larger the image, the faster it turns."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.decay = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        size = y.square().mean((1, 2), keepdim=True)
        turned = torch.stack([-y[:, 1], y[:, 0]], 1)
        return self.rate * torch.cos(3 * t) * (0.3 + size) * turned - self.decay * y


def states(count: int = 8, seed: int = 0) -> Tensor:
    """Of sizes from 0.2 to 2, so that the fastest image needs many times the steps of the slowest."""
    y = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return y / y.square().mean((1, 2), keepdim=True).sqrt() * torch.logspace(-0.7, 0.3, count)[:, None, None].double()
