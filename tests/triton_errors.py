"""How far the Triton kernel's values and gradients are from float64 ones.

On the CPU in a process of its own, since Triton reads TRITON_INTERPRET when it is imported.
"""

import torch
from torch import Tensor

from odenet_lightning.kernels.conv_field import EVALUATION, plain_step
from odenet_lightning.kernels.triton_conv_field import TritonConvField

EPS = 1e-5


def errors(batch: int, channels: int, height: int, width: int, device: str = "cpu") -> list[float]:
    """Largest deviations of f and of the derivatives, each in units of the truth's largest entry."""
    torch.manual_seed(0)
    shapes = ((batch, channels, height, width), (channels,), (channels,), (channels, channels, 3, 3), (channels,))
    inputs = [torch.randn(shape, device=device) for shape in shapes]
    cotangent = torch.randn(shapes[0], device=device)

    def graded(dtype: torch.dtype) -> list[Tensor]:
        given = [x.to(dtype).requires_grad_() for x in inputs]
        if dtype == torch.float32:
            f = TritonConvField.apply(EPS, *given)
        else:
            f = plain_step(EVALUATION, 0.0, EPS, [given[0], None, *given[1:]])[1]
        assert isinstance(f, Tensor)
        # not the bias: a norm follows, so its derivative is zero
        return [f.detach(), *torch.autograd.grad(f, given[:4], cotangent.to(dtype))]

    pairs = zip(graded(torch.float32), graded(torch.float64), strict=True)
    return [float((found - truth).abs().max() / truth.abs().max()) for found, truth in pairs]


if __name__ == "__main__":
    for shape in ((1, 6, 26, 26), (3, 1, 5, 7), (2, 5, 8, 3)):
        print(*errors(*shape))
