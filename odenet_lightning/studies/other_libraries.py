"""The post's ODE block solved by other libraries in PyTorch, which are given its field in PyTorch's operators."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.fields import ConvField
from odenet_lightning.models import ODENet

Block = Callable[[Tensor], Tensor]  # y(0) -> y(1)


class InOperators(nn.Module):
    """The post's field by PyTorch's operators, as other libraries are given it."""

    def __init__(self, field: ConvField) -> None:
        super().__init__()
        self.norm, self.conv = field.norm, field.conv

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, `[B, C, H, W]`."""
        del t
        return self.norm(self.conv(F.relu(self.norm(y))))


def in_operators(net: ODENet) -> InOperators:
    """The network's field without its kernel."""
    assert isinstance(net.block.field, ConvField)
    return InOperators(net.block.field)


def by_torchdiffeq(net: ODENet, rtol: float, adjoint: bool) -> Block:
    """The post's solve: dopri5, differentiated by the adjoint or by backpropagation."""
    solve, field = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint, in_operators(net)

    def block(y: Tensor) -> Tensor:
        states = solve(field, y, torch.tensor([0.0, 1.0], device=y.device), rtol=rtol, atol=rtol)
        assert isinstance(states, Tensor)
        return states[1]

    return block


def by_torchode(net: ODENet, rtol: float) -> Block:
    """Dopri5 by torchode, differentiated by backpropagation."""
    torchode: Any = importlib.import_module("torchode")  # an extra, with types of its own making
    shape: list[int] = []
    field = in_operators(net)

    def evaluate(t: Tensor, y: Tensor) -> Tensor:
        return field(t, y.view(-1, *shape)).flatten(1)

    term = torchode.ODETerm(evaluate)
    controller = torchode.IntegralController(atol=rtol, rtol=rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)

    def block(y: Tensor) -> Tensor:
        shape[:] = y.shape[1:]
        start, end = torch.zeros(len(y), device=y.device), torch.ones(len(y), device=y.device)
        problem = torchode.InitialValueProblem(y0=y.flatten(1), t_start=start, t_end=end, t_eval=None)
        return solver.solve(problem).ys[:, -1].view_as(y)

    return block
