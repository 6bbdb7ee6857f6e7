"""The post's field, and Runge-Kutta steps of it, by a compiled kernel.

A step is p_0 = y, p_i = y + h sum_j a_ij f(p_j), its last point the new state; conv_field.c does one image after the
other, so that a step's intermediate results stay in cache.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from odenet_lightning.kernels.compiled import Library, Step, address, library, wants_triton
from odenet_lightning.kernels.plan import FusedStep, Plan

MOST_POINTS = 16  # as in conv_field.c
MOST_CHANNELS = 24  # beyond, oneDNN's convolutions are as fast
EVALUATION = Plan((), (), with_end=True)  # of a single point: f(y)


def fits(y: Tensor, k_first: Tensor | None, *params: Tensor) -> bool:
    """Whether a kernel gives what PyTorch's operators would give, on the state's device.

    That is in float32, contiguous and of fitting shapes, outside autocast, `torch.func`, forward-mode differentiation
    and whatever else looks at the operators that are called.
    """
    device = y.device
    if torch.is_autocast_enabled(device.type) or is_in_torch_dispatch_mode():
        return False
    if torch._C._are_functorch_transforms_active() or y.dim() != 4 or y.numel() == 0:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    channels = y.size(1)
    shapes = ((channels,), (channels,), (channels, channels, 3, 3), (channels,))
    for x, shape in zip((y, y if k_first is None else k_first, *params), (y.shape, y.shape, *shapes), strict=True):
        ordinary = type(x) in (Tensor, torch.nn.Parameter) and x.device == device and x.dtype == torch.float32
        if not ordinary or x.shape != shape or not x.is_contiguous() or forward_ad.unpack_dual(x).tangent is not None:
            return False
    return True


def kernel_for(y: Tensor, k_first: Tensor | None, *params: Tensor) -> Library | None:
    """The compiled kernel, on the CPU, where it `fits`, and outside `torch.compile`; None elsewhere."""
    if torch.compiler.is_compiling() or not y.is_cpu or not (found := library()):
        return None
    return found if fits(y, k_first, *params) and y.size(1) <= MOST_CHANNELS else None


def described(plan: Plan, h: float | Tensor, eps: float, inputs: Sequence[Tensor | None]) -> Step:
    """A step for the kernel, its inputs y, k_first, gamma, beta, weight and bias in place."""
    y, k_first, gamma, beta, weight, bias = (address(x) for x in inputs)
    images, channels, height, width = inputs[0].shape  # pyright: ignore[reportOptionalMemberAccess]
    step = Step(y, gamma, beta, weight, bias, k_first, eps=eps, points=plan.points)
    step.images, step.channels, step.height, step.width = images, channels, height, width
    step.threads = torch.get_num_threads()
    a, error = plan.coefficients
    step.a, step.error = ctypes.addressof(a), error and ctypes.addressof(error)
    step.sizes = h.double().flatten() if isinstance(h, Tensor) else torch.full((images,), h, dtype=torch.float64)
    step.h = address(step.sizes)
    return step


class Taken:
    """A step that the kernel took, and what its backward pass needs."""

    def __init__(
        self,
        kernel: Library,
        plan: Plan,
        h: float | Tensor,
        eps: float,
        tolerance: tuple[float, float],
        inputs: Sequence[Tensor | None],
        keep: bool,
    ) -> None:
        y, k_first = inputs[:2]
        assert y is not None
        step = described(plan, h, eps, inputs)
        self.y1 = torch.empty_like(y) if plan.points > 1 else None
        self.k_last = torch.empty_like(y) if plan.with_end else None
        self.inner = y.new_empty(plan.points - 2, *y.shape) if keep and plan.points > 2 else None
        self.conv, self.stats = kept(plan, y, k_first is not None) if keep else (None, None)
        self.squares = torch.empty(len(y), dtype=torch.float64) if plan.error else None
        step.inner, step.y1, step.k_last = address(self.inner), address(self.y1), address(self.k_last)
        step.ratio, (step.rtol, step.atol) = address(self.squares), tolerance
        place(step, self.conv, self.stats, k_first is not None)
        kernel.forward(step)


def kept(plan: Plan, y: Tensor, has_first: bool) -> tuple[Tensor, Tensor]:
    """Room for what each evaluation leaves for the backward pass."""
    evaluations = plan.evaluations(has_first)
    return y.new_empty(evaluations, *y.shape), y.new_empty(evaluations, len(y), 2, y.size(1), 2)


def place(step: Step, conv: Tensor | None, stats: Tensor | None, has_first: bool) -> None:
    """Tell the step where that room is; it counts by points, and there is none for a point whose slope is given."""
    if conv is not None and stats is not None:
        step.conv = conv.data_ptr() - has_first * conv.stride(0) * conv.element_size()
        step.stats = stats.data_ptr() - has_first * stats.stride(0) * stats.element_size()


class ConvFieldStep(torch.autograd.Function):
    """(y, k_first, gamma, beta, weight, bias) -> (y1, k_last, squares), differentiated by the kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Library,
        plan: Plan,
        h: float | Tensor,
        eps: float,
        tolerance: tuple[float, float],
        *inputs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Take the step."""
        taken = Taken(kernel, plan, h, eps, tolerance, inputs, keep=True)
        ctx.kernel, ctx.plan, ctx.h, ctx.eps = kernel, plan, h, eps
        ctx.set_materialize_grads(False)
        end = taken.y1 if plan.with_end else None  # else nothing is evaluated there, and a later layer may change it
        ctx.save_for_backward(*inputs, end, taken.inner, taken.conv, taken.stats)
        if taken.squares is not None:
            ctx.mark_non_differentiable(taken.squares)
        return taken.y1, taken.k_last, taken.squares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the derivatives by the inputs; by the bias it is zero, since a norm follows."""
        *inputs, y1, inner, conv, stats = ctx.saved_tensors
        by_y1, by_k_last = grad_outputs[:2]
        if torch.is_grad_enabled():  # create_graph: what comes out is differentiated again
            grads = differentiable(ctx.plan, ctx.h, ctx.eps, inputs, (by_y1, by_k_last))
            return (None, None, None, None, None, *grads)
        y, k_first, gamma, beta, weight, bias = inputs
        by_y1, by_k_last = (None if by is None else by.contiguous() for by in (by_y1, by_k_last))
        by_y, by_params = torch.empty_like(y), y.new_empty(weight.numel() + len(gamma) + len(beta))
        by_k_first = None if k_first is None else torch.empty_like(y)
        step = described(ctx.plan, ctx.h, ctx.eps, inputs)
        step.error, step.y1, step.inner = None, address(y1), address(inner)
        step.by_y1, step.by_k_last = address(by_y1), address(by_k_last)
        step.by_y, step.by_k_first, step.by_params = address(by_y), address(by_k_first), by_params.data_ptr()
        place(step, conv, stats, k_first is not None)
        ctx.kernel.backward(step)
        by_weight, by_gamma, by_beta = by_params.split([weight.numel(), len(gamma), len(beta)])
        by_weight = by_weight.view_as(weight)
        return (*[None] * 5, by_y, by_k_first, by_gamma, by_beta, by_weight, torch.zeros_like(bias))


def plain_step(plan: Plan, h: float | Tensor, eps: float, inputs: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """The new state and f of it by PyTorch's operators."""
    y, k_first, gamma, beta, weight, bias = inputs

    def field(p: Tensor) -> Tensor:
        z = F.relu(F.group_norm(p, len(gamma), gamma, beta, eps))
        return F.group_norm(F.conv2d(z, weight, bias, padding=1), len(gamma), gamma, beta, eps)

    point, slopes = y, [] if k_first is None else [k_first]
    for row in plan.rows:
        if len(slopes) < len(row):
            slopes.append(field(point))
        point = y + h * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros_like(y))
    return point, field(point) if plan.with_end else None


def differentiable(
    plan: Plan, h: float | Tensor, eps: float, inputs: Sequence[Any], cotangents: tuple[Tensor | None, Tensor | None]
) -> list[Tensor | None]:
    """The derivatives by the inputs that want one, as functions of all of them and of the cotangents."""
    # of aliases: k_first depends on y, and the derivative by y must not include that dependence
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    pairs = zip(plain_step(plan, h, eps, inputs), cotangents, strict=True)
    outputs = [(output, by) for output, by in pairs if output is not None and by is not None]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    along = torch.autograd.grad(
        [output for output, _ in outputs], wanted, [by for _, by in outputs], create_graph=True, allow_unused=True
    )
    found = iter(along)
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


Parameters = tuple[Tensor, Tensor, Tensor, Tensor]  # the norm's scale and shift, the convolution's kernel and bias


def evaluate_conv_field(y: Tensor, params: Parameters, eps: float) -> Tensor | None:
    """norm(conv(relu(norm(y)))) with one group a channel by the kernel; None where it does not apply.

    Args:
        y: state, `[B, C, H, W]`.
        params: the norms' scale and shift, `[C]`; the convolution's kernel, `[C, C, 3, 3]`, and bias, `[C]`.
        eps: added to the norms' variances.
    """
    inputs = (y, None, *params)
    if y.is_cuda and wants_triton() and fits(*inputs):
        from odenet_lightning.kernels.triton_conv_field import evaluate_by_triton  # slow to import

        return evaluate_by_triton(eps, y, *params)
    kernel = kernel_for(*inputs)
    if kernel is None:
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (y, *params)):
        return ConvFieldStep.apply(kernel, EVALUATION, 0.0, eps, (0.0, 0.0), *inputs)[1]  # pyright: ignore
    return Taken(kernel, EVALUATION, 0.0, eps, (0.0, 0.0), inputs, keep=False).k_last


def take_conv_field_step(
    plan: Plan,
    h: float | Tensor,
    y: Tensor,
    k_first: Tensor | None,
    params: Parameters,
    eps: float,
    tolerance: tuple[float, float] = (0.0, 0.0),
) -> FusedStep | None:
    """A Runge-Kutta step of that field by the kernel; None where it does not apply.

    Args:
        plan: coefficients.
        h: step size; of each image, `[B, 1, 1, 1]`, where they differ.
        y: state, `[B, C, H, W]`.
        k_first: f(y), where known.
        params: see `evaluate_conv_field`.
        eps: added to the norms' variances.
        tolerance: relative and absolute, for the error ratio.
    """
    inputs = (y, k_first, *params)
    kernel = kernel_for(*inputs)
    if kernel is None or plan.points > MOST_POINTS:
        return None
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return FusedStep(*ConvFieldStep.apply(kernel, plan, h, eps, tolerance, *inputs))  # pyright: ignore
    taken = Taken(kernel, plan, h, eps, tolerance, inputs, keep=False)
    assert taken.y1 is not None
    return FusedStep(taken.y1, taken.k_last, taken.squares)
