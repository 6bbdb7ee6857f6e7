"""The post's field on a GPU by two Triton kernels, forward and backward, one image per program.

They have not been run on a GPU yet: `ODENET_KERNELS=triton` opts in. With `TRITON_INTERPRET=1` they run on the CPU, for
tests.
"""

# in a jitted function, names have Triton's types
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from odenet_lightning.kernels.conv_field import EVALUATION, differentiable

MOST_VALUES = 16_384  # per image, channels and pixels rounded up to powers of two: they are held in registers
WARPS = 8


@triton.jit
def channel_row(x, c, places, inside, SIZE: tl.constexpr):  # noqa: ANN001, ANN201
    """Channel c of an image; zero outside."""
    return tl.load(x + c * SIZE + places, mask=inside, other=0.0)


@triton.jit
def moved(places, tap: tl.constexpr, H: tl.constexpr, W: tl.constexpr, back: tl.constexpr):  # noqa: ANN001, ANN201
    """The places that a tap of the 3 x 3 kernel reads (with `back`, that read through it), and which are inside."""
    row = places // W + (1 - tap // 3 if back else tap // 3 - 1)
    column = places % W + (1 - tap % 3 if back else tap % 3 - 1)
    inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (places < H * W)
    return row * W + column, inside


@triton.jit
def forward_kernel(  # noqa: ANN201
    y, gamma, beta, weight, bias, f, conv, stats, eps,  # noqa: ANN001
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Evaluate f = norm(conv(relu(norm(y)))); keep the convolution's result and both norms' mean and 1 / deviation."""
    SIZE: tl.constexpr = H * W
    image = tl.program_id(0).to(tl.int64)
    y, f, conv, stats = y + image * C * SIZE, f + image * C * SIZE, conv + image * C * SIZE, stats + image * 4 * C
    places, out = tl.arange(0, PLACES), tl.arange(0, CHANNELS)
    inside, real = places < SIZE, out < C
    total = tl.zeros([CHANNELS, PLACES], tl.float32)
    for c in range(C):
        x = channel_row(y, c, places, inside, SIZE)
        mean = tl.sum(x, 0) / SIZE
        centred = tl.where(inside, x - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / SIZE + eps)
        tl.store(stats + 2 * c, mean)
        tl.store(stats + 2 * c + 1, scale)
        for tap in tl.static_range(9):
            there, is_there = moved(places, tap, H, W, False)
            x = (channel_row(y, c, there, is_there, SIZE) - mean) * scale
            z = tl.where(is_there, tl.maximum(x * tl.load(gamma + c) + tl.load(beta + c), 0.0), 0.0)
            taps = tl.load(weight + (out * C + c) * 9 + tap, mask=real, other=0.0)
            total += taps[:, None] * z[None, :]
    total += tl.load(bias + out, mask=real, other=0.0)[:, None]
    whole = real[:, None] & inside[None, :]
    where = out[:, None] * SIZE + places[None, :]
    mean = tl.sum(tl.where(whole, total, 0.0), 1) / SIZE
    centred = tl.where(whole, total - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / SIZE + eps)
    tl.store(stats + 2 * (C + out), mean, mask=real)
    tl.store(stats + 2 * (C + out) + 1, scale, mask=real)
    factor, shift = tl.load(gamma + out, mask=real, other=0.0), tl.load(beta + out, mask=real, other=0.0)
    tl.store(conv + where, total, mask=whole)
    tl.store(f + where, centred * (scale * factor)[:, None] + shift[:, None], mask=whole)


@triton.jit
def backward_kernel(  # noqa: ANN201
    y, gamma, beta, weight, conv, stats, by_f, by_y, by_params,  # noqa: ANN001
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Compute the gradient with respect to y, and the image's part of those of weight, gamma, beta, in this order."""
    SIZE: tl.constexpr = H * W
    image = tl.program_id(0).to(tl.int64)
    start = image * C * SIZE
    y, conv, by_f, by_y = y + start, conv + start, by_f + start, by_y + start
    stats, by_params = stats + image * 4 * C, by_params + image * (9 * C * C + 2 * C)
    places, channels = tl.arange(0, PLACES), tl.arange(0, CHANNELS)
    inside, real = places < SIZE, channels < C
    whole = real[:, None] & inside[None, :]
    where = channels[:, None] * SIZE + places[None, :]
    factor, shift = tl.load(gamma + channels, mask=real, other=0.0), tl.load(beta + channels, mask=real, other=0.0)
    mean, scale = (
        tl.load(stats + 2 * channels, mask=real, other=0.0),
        tl.load(stats + 2 * channels + 1, mask=real, other=0.0),
    )
    x = tl.where(whole, (tl.load(y + where, mask=whole, other=0.0) - mean[:, None]) * scale[:, None], 0.0)
    z = tl.where(whole, tl.maximum(x * factor[:, None] + shift[:, None], 0.0), 0.0)
    by_z = tl.zeros([CHANNELS, PLACES], tl.float32)
    by_gamma, by_beta = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    for c in range(C):
        # of the outer norm: by_conv = scale (g - mean(g) - x mean(g x)), g = gamma by_f
        mean_c, scale_c = tl.load(stats + 2 * (C + c)), tl.load(stats + 2 * (C + c) + 1)
        factor_c = tl.load(gamma + c)
        by, x_c = channel_row(by_f, c, places, inside, SIZE), channel_row(conv, c, places, inside, SIZE)
        x_c = tl.where(inside, (x_c - mean_c) * scale_c, 0.0)
        sum_by, sum_by_x = tl.sum(by, 0), tl.sum(by * x_c, 0)
        by_gamma += tl.where(channels == c, sum_by_x, 0.0)
        by_beta += tl.where(channels == c, sum_by, 0.0)
        for tap in tl.static_range(9):
            there, is_there = moved(places, tap, H, W, True)
            by, x_c = channel_row(by_f, c, there, is_there, SIZE), channel_row(conv, c, there, is_there, SIZE)
            rest = sum_by / SIZE + (x_c - mean_c) * scale_c * (sum_by_x / SIZE)
            by_conv = tl.where(is_there, (by - rest) * (scale_c * factor_c), 0.0)
            of_taps = (c * C + channels) * 9 + tap
            taps = tl.load(weight + of_taps, mask=real, other=0.0)
            by_z += taps[:, None] * by_conv[None, :]
            tl.store(by_params + of_taps, tl.sum(z * by_conv[None, :], 1), mask=real)
    by_z = tl.where(z > 0.0, by_z, 0.0)
    sum_by, sum_by_x = tl.sum(by_z, 1), tl.sum(by_z * x, 1)
    rest = (sum_by / SIZE)[:, None] + x * (sum_by_x / SIZE)[:, None]
    tl.store(by_y + where, (by_z - rest) * (scale * factor)[:, None], mask=whole)
    tl.store(by_params + 9 * C * C + channels, by_gamma + sum_by_x, mask=real)
    tl.store(by_params + 9 * C * C + C + channels, by_beta + sum_by, mask=real)


def sizes(y: Tensor) -> dict[str, Any]:
    """The kernels' compile-time arguments."""
    _, channels, height, width = y.shape
    channels_up, places = triton.next_power_of_2(channels), triton.next_power_of_2(height * width)
    return {"C": channels, "H": height, "W": width, "CHANNELS": channels_up, "PLACES": places, "num_warps": WARPS}


class TritonConvField(torch.autograd.Function):
    """(eps, y, gamma, beta, weight, bias) -> f(y), differentiated by the kernel.

    All are float32, contiguous and on one device; the shapes are those of `evaluate_conv_field`.
    """

    @staticmethod
    def forward(ctx: Any, eps: float, *inputs: Tensor) -> Tensor:
        """Evaluate the field."""
        y, gamma, beta, weight, bias = inputs
        f, conv, stats = torch.empty_like(y), torch.empty_like(y), y.new_empty(len(y), 2, y.size(1), 2)
        forward_kernel[(len(y),)](y, gamma, beta, weight, bias, f, conv, stats, eps, **sizes(y))
        ctx.eps = eps
        ctx.save_for_backward(*inputs, conv, stats)
        return f

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients with respect to the inputs; the bias's is zero, since a norm follows."""
        *inputs, conv, stats = ctx.saved_tensors
        (by_f,) = grad_outputs
        y, gamma, beta, weight, bias = inputs
        if torch.is_grad_enabled():  # create_graph: what comes out is differentiated again
            by_y, _, *by_params = differentiable(EVALUATION, 0.0, ctx.eps, [y, None, *inputs[1:]], (None, by_f))
            return (None, by_y, *by_params)
        by_y, by_params = torch.empty_like(y), y.new_empty(len(y), weight.numel() + 2 * len(gamma))
        backward_kernel[(len(y),)](y, gamma, beta, weight, conv, stats, by_f.contiguous(), by_y, by_params, **sizes(y))
        by_weight, by_gamma, by_beta = by_params.sum(0).split([weight.numel(), len(gamma), len(beta)])
        return None, by_y, by_gamma, by_beta, by_weight.view_as(weight), torch.zeros_like(bias)


def evaluate_by_triton(eps: float, y: Tensor, *params: Tensor) -> Tensor | None:
    """See `evaluate_conv_field`; None where an image does not fit into a program."""
    size = sizes(y)
    if size["CHANNELS"] * size["PLACES"] > MOST_VALUES:
        return None
    return TritonConvField.apply(eps, y, *params)  # pyright: ignore[reportReturnType]
