"""The post's field, and Runge-Kutta steps of it, by a compiled kernel.

A step is p_0 = y, p_i = y + h sum_j a_ij f(p_j), its last point the new state; conv_field.c does one image after the
other, so that a step's intermediate results stay in cache.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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

    It does so in float32, for contiguous tensors of fitting shapes, outside autocast, `torch.func`, forward-mode
    differentiation and anything else that looks at the operators that are called.
    """
    device, channels = y.device, y.size(1) if y.dim() == 4 else 0
    # of a single value per channel the operators refuse to compute a variance
    if not channels or y.numel() <= channels or torch.is_autocast_enabled(device.type) or is_in_torch_dispatch_mode():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    shapes = (y.shape, y.shape, (channels,), (channels,), (channels, channels, 3, 3), (channels,))
    for x, shape in zip((y, k_first, *params), shapes, strict=True):
        if x is None:
            continue
        if type(x) not in (Tensor, torch.nn.Parameter) or x.dtype != torch.float32 or x.device != device:
            return False
        if x.shape != shape or not x.is_contiguous():
            return False
    return True


def kernel_for(y: Tensor, k_first: Tensor | None, *params: Tensor) -> Library | None:
    """The compiled kernel, if it `fits`, on the CPU and outside `torch.compile`; None otherwise."""
    if torch.compiler.is_compiling() or not y.is_cpu or not (found := library()):
        return None
    return found if fits(y, k_first, *params) and y.size(1) <= MOST_CHANNELS else None


class Call(NamedTuple):
    """A kernel, and what it is to compute.

    Attributes:
        kernel: evaluates and differentiates.
        plan: coefficients.
        h: step size, or those of the images.
        eps: added to the norms' variances.
        tolerance: relative and absolute, for the error ratio.
    """

    kernel: Library
    plan: Plan
    h: float | Tensor
    eps: float
    tolerance: tuple[float, float] = (0.0, 0.0)

    def step(self, inputs: Sequence[Tensor | None]) -> Step:
        """The step as the kernel takes it, its inputs y, k_first, gamma, beta, weight and bias in place."""
        plan, h, shape = self.plan, self.h, inputs[0].shape  # pyright: ignore[reportOptionalMemberAccess]
        sizes = None  # with a single point, nothing is multiplied by h
        if plan.points > 1:
            sizes = h.double().flatten() if isinstance(h, Tensor) else torch.full(shape[:1], h, dtype=torch.float64)
        places = (*(address(x) for x in inputs), *plan.addresses, address(sizes))
        step = Step(*places, *self.tolerance, self.eps, *shape, plan.points, torch.get_num_threads())
        step.sizes = sizes  # held as long as its address
        return step

    def take(self, inputs: Sequence[Any], keep: bool) -> tuple[Tensor | None, ...]:
        """Take the step; return a `FusedStep`'s values, and what a backward pass needs.

        This is the points between the first and the last, and what each evaluation leaves; None if not to be kept.
        """
        y, k_first = inputs[:2]
        plan, (images, channels, height, width) = self.plan, y.shape
        y1 = torch.empty_like(y) if plan.points > 1 else None
        k_last = torch.empty_like(y) if plan.with_end else None
        squares = y.new_empty(images, dtype=torch.float64) if plan.error else None
        inner = y.new_empty(plan.points - 2, *y.shape) if keep and plan.points > 2 else None
        evaluations = plan.evaluations(k_first is not None)
        kept = y.new_empty(evaluations, images, channels * (height * width + 4)) if keep else None
        step = self.step(inputs)
        step.inner, step.y1, step.k_last = address(inner), address(y1), address(k_last)
        step.kept, step.ratio = address(kept), address(squares)
        self.kernel.forward(step)
        return y1, k_last, squares, inner, kept


class ConvFieldStep(torch.autograd.Function):
    """(y, k_first, gamma, beta, weight, bias) -> (y1, k_last, squares), differentiated by the kernel."""

    @staticmethod
    def forward(ctx: Any, call: Call, *inputs: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Take the step."""
        y1, k_last, squares, inner, kept = call.take(inputs, keep=True)
        ctx.call = call
        ctx.set_materialize_grads(False)
        end = y1 if call.plan.with_end else None  # else nothing is evaluated there, and a later layer may change it
        ctx.save_for_backward(*inputs, end, inner, kept)
        if squares is not None:
            ctx.mark_non_differentiable(squares)
        return y1, k_last, squares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients with respect to the inputs; the bias's is zero, since a norm follows."""
        *inputs, y1, inner, kept = ctx.saved_tensors
        by_y1, by_k_last = grad_outputs[:2]
        call: Call = ctx.call
        if torch.is_grad_enabled():  # create_graph: what comes out is differentiated again
            return (None, *differentiable(call.plan, call.h, call.eps, inputs, (by_y1, by_k_last)))
        by_y1, by_k_last = (None if by is None else by.contiguous() for by in (by_y1, by_k_last))
        by = [None if x is None else torch.empty_like(x) for x in inputs]
        step = call.step(inputs)
        step.y1, step.inner, step.kept = address(y1), address(inner), address(kept)
        step.by_y1, step.by_k_last = address(by_y1), address(by_k_last)
        step.by_y, step.by_k_first, step.by_gamma, step.by_beta, step.by_weight, step.by_bias = map(address, by)
        call.kernel.backward(step)
        return None, *by


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
    """The gradients with respect to the inputs that require one, as functions of all inputs and of the cotangents."""
    # of aliases: k_first depends on y, and the gradient with respect to y must not include that dependence
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    pairs = zip(plain_step(plan, h, eps, inputs), cotangents, strict=True)
    outputs = [(output, by) for output, by in pairs if output is not None and by is not None]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    along = torch.autograd.grad(
        [output for output, _ in outputs], wanted, [by for _, by in outputs], create_graph=True, allow_unused=True
    )
    found = iter(along)
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


def wants_gradient(inputs: Sequence[Tensor | None]) -> bool:
    """Whether a result is to be differentiable."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


Parameters = tuple[Tensor, Tensor, Tensor, Tensor]  # the norm's scale and shift, the convolution's kernel and bias


def evaluate_conv_field(y: Tensor, params: Parameters, eps: float) -> Tensor | None:
    """norm(conv(relu(norm(y)))) by the kernel, with one group per channel; None where no kernel applies.

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
    call = Call(kernel, EVALUATION, 0.0, eps)
    if wants_gradient(inputs):
        return ConvFieldStep.apply(call, *inputs)[1]  # pyright: ignore
    return call.take(inputs, keep=False)[1]


def take_conv_field_step(
    plan: Plan,
    h: float | Tensor,
    y: Tensor,
    k_first: Tensor | None,
    params: Parameters,
    eps: float,
    tolerance: tuple[float, float] = (0.0, 0.0),
) -> FusedStep | None:
    """A Runge-Kutta step of that field by the kernel; None where no kernel applies.

    Args:
        plan: coefficients.
        h: step size, or one for each image, `[B, 1, 1, 1]`.
        y: state, `[B, C, H, W]`.
        k_first: f(y), if known.
        params: see `evaluate_conv_field`.
        eps: added to the norms' variances.
        tolerance: relative and absolute, for the error ratio.
    """
    inputs = (y, k_first, *params)
    kernel = kernel_for(*inputs)
    if kernel is None or plan.points > MOST_POINTS:
        return None
    call = Call(kernel, plan, h, eps, tolerance)
    if wants_gradient(inputs):
        return FusedStep(*ConvFieldStep.apply(call, *inputs))  # pyright: ignore
    y1, k_last, squares, _, _ = call.take(inputs, keep=False)
    assert y1 is not None
    return FusedStep(y1, k_last, squares)
