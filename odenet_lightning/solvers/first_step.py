"""The first step of a solve under error control, where none is given."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odenet_lightning.solvers.evaluation import evaluate
from odenet_lightning.solvers.problem import Norm, Problem

if TYPE_CHECKING:
    from odenet_lightning.solvers.adaptive import AdaptiveRungeKutta


def guess_first_step(method: "AdaptiveRungeKutta", problem: Problem, f0: Tensor, norm: Norm) -> Tensor:
    """Hairer's first step (Hairer et al. 1993, II.4), as torchdiffeq computes it, from f0 = f(t0, y0); one evaluation.

    Returns:
        The step in units of t, positive, in the shape of the norm; on the device.
    """
    y0, t0 = problem.y0, problem.t0
    sign = 1.0 if problem.t1 > t0 else -1.0
    with torch.no_grad():
        scale = method.atol + y0.abs() * method.rtol
        d0, d1 = norm(y0 / scale), norm(f0 / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
        f1 = evaluate(problem.field, t0 + sign * h0, y0 + sign * h0 * f0)
        d2 = norm((f1 - f0) / scale) / h0
        steepest = torch.maximum(d1, d2)
        h1 = torch.where(
            steepest <= 1e-15,
            torch.maximum(torch.full_like(h0, 1e-6), h0 * 1e-3),
            (0.01 / steepest) ** (1 / method.tableau.order),
        )
        return torch.minimum(100 * h0, h1)
