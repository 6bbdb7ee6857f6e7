"""The adjoint's backward solve with each image solved by itself, and dL/dtheta, the integral that all images share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odenet_lightning.gradients.base import vector_jacobian
from odenet_lightning.gradients.recompute import Recomputation, add, buffers_of
from odenet_lightning.solvers import AdaptiveRungeKutta, Step, rms_norm
from odenet_lightning.solvers.evaluation import evaluate
from odenet_lightning.solvers.runge_kutta import add_weighted


@dataclass
class EachAdjoint:
    """dz/dt = (f, -a df/dy) for z = (y, a) of each image, `[B, 2, ...]`, and dL/dtheta beside it.

    dL/dtheta is the sum over the images of -int a df/dtheta dt. As it feeds back into no image, it is left out of the
    error norm, and each accepted step adds its own quadrature, h sum_i b_i (-a df/dtheta)(stage i): exactly what the
    method makes of the integral as one more state, at one further evaluation for each of its stages with b_i not 0.

    Attributes:
        solver: the backward solve's.
        f: the field.
        params: the parameters to differentiate with respect to.
        scale: what an image's cotangent was divided by, `[B, 1, ...]`.
        totals: dL/dparams so far; None for a parameter that f does not depend on or that requires no gradient.
    """

    solver: AdaptiveRungeKutta
    f: Recomputation
    params: Sequence[Tensor]
    scale: Tensor
    of_each_image = True  # as the forward solve has checked for f

    def __post_init__(self) -> None:
        self.totals: list[Tensor | None] = [None for _ in self.params]
        self.buffers = buffers_of(self.f.field)

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt at the images' times, a scalar or `[B, 1, 1, ...]`."""
        y, a = z.unbind(1)
        slope, by_y, _ = self.product(t[:, 0] if t.dim() else t, y, -a, ())
        return torch.stack([slope, by_y], 1)

    def product(
        self, t: Tensor, y: Tensor, cotangent: Tensor, params: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """f, and the cotangent's products with df/dy and df/dparams."""
        with self.f.as_in_forward(self.buffers):
            y = y.detach().requires_grad_()
            slope = evaluate(self.f, t, y)
        self.f.check_leaves(slope, (y, *self.params))
        return slope.detach(), *vector_jacobian(slope, y, params, cotangent)

    def observe(self, step: Step, z1: Tensor, ks: Sequence[Tensor]) -> None:
        """Add a step's part of dL/dparams; see `Problem.observe`."""
        del z1
        assert isinstance(step.t, Tensor)
        assert isinstance(step.h, Tensor)
        tableau, h = self.solver.tableau, step.h[:, 0]
        scale = self.scale if step.images is None else self.scale[step.images]
        for row, b, c in zip(((), *tableau.a), tableau.b, tableau.c, strict=True):
            if b != 0.0:
                y, a = (add_weighted(step.y, ks, row, step.h) if row else step.y).unbind(1)
                _, _, grads = self.product(step.t[:, 0] + c * h, y, -b * h * scale * a, self.params)
                self.totals = [add(total, grad) for total, grad in zip(self.totals, grads, strict=True)]


def larger_part(z: Tensor) -> Tensor:
    """The larger of the norms of an image's y and a, so that the smaller one's error counts, too."""
    return torch.stack([rms_norm(part) for part in z]).max()
