"""Fields made of convolutions and norms, on states `[B, C, H, W]`."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from torch.nn.modules.module import _has_any_global_hook

from odenet_lightning.fields.base import Field
from odenet_lightning.kernels import FusedStep, Parameters, Plan, evaluate_conv_field, take_conv_field_step
from odenet_lightning.solvers.settings import check_whole


def group_count(channels: int) -> int:
    """Number of groups for a group norm: the largest divisor of `channels` that is at most 32.

    At 32 channels or fewer this is one group per channel (an instance norm), as in the post.
    """
    check_whole("channels", channels)
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


def is_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this kind, not compiled and without hooks, so that a kernel may replace it."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is kind and not hooked and not _has_any_global_hook() and module._compiled_call_impl is None


class SameConv(torch.autograd.Function):
    """A 3 x 3 convolution with padding 1 whose derivative by its input is computed as another convolution.

    dL/dx = dL/dy convolved with the kernel turned by 180 degrees, its channels swapped. That is what the derivative
    is, but oneDNN's own way of computing it takes four times as long for few channels on the CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the convolution of x, `[B, C, H, W]`."""
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep what the backward pass and forward mode need."""
        del output
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """Return the derivative along a direction of x, weight and bias."""
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = tangents
        total = x.new_zeros(1, len(weight), 1, 1) if by_bias is None else by_bias.reshape(1, -1, 1, 1)
        total = total if by_x is None else total + F.conv2d(by_x, weight, padding=1)
        return total if by_weight is None else total + F.conv2d(x, by_weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the derivatives by x, weight and bias, differentiable themselves."""
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            F.conv2d(grad, weight.flip(2, 3).transpose(0, 1), padding=1) if by_x else None,
            conv2d_weight(x, weight.shape, grad, padding=1) if by_weight else None,
            grad.sum((0, 2, 3)) if by_bias else None,
        )


class Conv(nn.Conv2d):
    """A 3 x 3 convolution with padding 1, from `[B, C, H, W]` to the same shape.

    `nn.Conv2d`'s numbers and parameters, with a faster backward pass on the CPU (`SameConv`). Not worth it for
    many channels or in channels-last memory.

    Args:
        channels: C, at least 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the input."""
        if input.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
            return super().forward(input)
        return cast(Tensor, SameConv.apply(input, self.weight, self.bias))


class ConvField(Field):
    """The post's field, f(y) = norm(conv(relu(norm(y)))), the same at all times.

    One group norm serves both places, so its scale and shift are shared (as in the post); the
    convolution is 3 x 3 with padding 1 and keeps `[B, C, H, W]`.

    Do not use it for tasks where the dynamics must change over t: see Chen et al. 2018 (arXiv:1806.07366),
    whose field takes t as an extra channel.

    Args:
        channels: C, at least 1.
    """

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.conv = Conv(channels)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, `[B, C, H, W]`; `t` is not used."""
        del t
        params = self._kernel_params()
        f = evaluate_conv_field(y, params, self.norm.eps) if params else None
        return self.norm(self.conv(F.relu(self.norm(y)))) if f is None else f

    def runge_kutta_step(
        self, plan: Plan, h: float | Tensor, y: Tensor, k_first: Tensor | None, tolerance: tuple[float, float]
    ) -> FusedStep | None:
        """See `solvers.runge_kutta.fused_step`."""
        params = self._kernel_params() if is_as_made(self, ConvField) else None
        return take_conv_field_step(plan, h, y, k_first, params, self.norm.eps, tolerance) if params else None

    def _kernel_params(self) -> Parameters | None:
        """What the kernel takes; None where it cannot stand for this field."""
        norm, conv = self.norm, self.conv
        if not is_as_made(norm, nn.GroupNorm) or not is_as_made(conv, Conv) or norm.num_groups != norm.num_channels:
            return None
        return norm.weight, norm.bias, conv.weight, cast(Tensor, conv.bias)


class TimeConv(nn.Module):
    """A 3 x 3 convolution that sees t as one more channel: `[B, C, H, W]` -> `[B, C, H, W]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, kernel_size=3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the convolution of y with t beside it."""
        return self.conv(torch.cat([t.to(y.dtype).expand_as(y[:, :1]), y], 1))


class TimeConvField(Field):
    """The field of Chen et al. 2018 (arXiv:1806.07366): norm, relu, conv, norm, relu, conv, norm, with t as a channel.

    75,392 parameters at 64 channels. Not for a laptop's CPU: on a state of the same height and width,
    an evaluation takes about a hundred times as long as one of `ConvField` at 6 channels.

    Args:
        channels: C, at least 1.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(group_count(channels), channels) for _ in range(3))
        self.convs = nn.ModuleList(TimeConv(channels) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, `[B, C, H, W]`."""
        for norm, conv in zip(self.norms, self.convs, strict=False):
            y = conv(t, F.relu(norm(y)))
        return self.norms[-1](y)


class TimeBiasField(Field):
    """f(t, y) = norm(conv(silu(norm(y))) + t b): a 3 x 3 convolution whose bias moves with t.

    Time costs C parameters instead of the 9 C of an extra channel. Each norm has one group, over all
    of a sample's channels: the channels' sizes relative to each other are kept, and in channels-last
    memory it costs a tenth of a norm for each channel. Not for dynamics that must change their
    pattern over t, rather than their offset.

    Args:
        channels: C, at least 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_whole("channels", channels)
        self.norm_in = nn.GroupNorm(1, channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.norm_out = nn.GroupNorm(1, channels)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, `[B, C, H, W]`."""
        return self.norm_out(self.conv(F.silu(self.norm_in(y))) + t * self.bias)


class BottleneckField(Field):
    """The field of Dupont et al. 2019 (arXiv:1904.01681): 1 x 1, 3 x 3 and 1 x 1 convolutions, relu between; no t.

    37,766 parameters with 6 channels and a hidden width of 64. It has no norm, so nothing bounds the state or the
    stiffness: watch the number of evaluations.

    Args:
        channels: C of the state, at least 1.
        hidden: width between the convolutions.
    """

    def __init__(self, channels: int = 6, hidden: int = 64) -> None:
        super().__init__()
        check_whole("channels", channels)
        check_whole("hidden", hidden)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, kernel_size=1),
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, `[B, C, H, W]`; `t` is not used."""
        del t
        return self.layers(y)
