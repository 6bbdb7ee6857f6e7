"""How a solve is differentiated: what all gradient methods share."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from odenet_lightning.solvers import Problem, Solution, Solver
from odenet_lightning.solvers.settings import Settings


class GradientError(RuntimeError):
    """A derivative that this gradient method cannot compute, or not without leaving something out."""


class Gradient(Settings, ABC):
    """A way to differentiate y(t1) with respect to y(t0) and the field's parameters.

    Any gradient method takes any solver and any field, or refuses with a `GradientError` or a `FieldError`.
    It holds settings only.
    """

    @abstractmethod
    def solve(self, solver: Solver, problem: Problem) -> Solution:
        """Solve the problem so that gradients flow back through the solution's `y`.

        Raises:
            SolverError: a solve cannot be finished; in the backward pass, out of `backward()`.
            FieldError: see `Solver.solve`; also for a field whose backward pass cannot be recomputed.
            GradientError: a derivative was asked for that this method cannot give.
        """


@contextmanager
def refusing_transforms(method: str) -> Iterator[None]:
    """Replace torch's errors on custom backward passes under `torch.func` or forward mode by one with advice."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if not re.search(r"functorch|setup_context|forward AD|jvp|vmap", str(error)):
            raise
        raise GradientError(
            f"{method} computes its backward pass itself, so it does not work under torch.func (grad, jacrev, vmap) "
            "or forward-mode differentiation: use Backprop there"
        ) from error


def refuse_second_derivatives(method: str) -> None:
    """Refuse `create_graph=True`: the gradient's own derivative would silently be left out."""
    if torch.is_grad_enabled():
        raise GradientError(
            f"{method} has no second derivative, which create_graph=True (a gradient penalty?) asks for: use Backprop"
        )


def vector_jacobian(
    output: Tensor, y: Tensor, params: Sequence[Tensor], cotangent: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The cotangent's products with d output/dy and d output/dparams; None for parameters it does not depend on.

    Raises:
        GradientError: the output depends on tensors that were computed before the evaluation.
    """
    wanted = [p for p in params if p.requires_grad]
    if not output.requires_grad:
        return torch.zeros_like(y), [None] * len(params)
    try:
        grad_y, *grads = torch.autograd.grad(output, (y, *wanted), cotangent, allow_unused=True)
    except RuntimeError as error:
        if "through the graph a second time" not in str(error):
            raise
        raise GradientError(
            "the field uses a tensor that was computed outside of it (a weight made by another network?), whose "
            "gradient each evaluation would need anew: compute it within the field, or use Backprop"
        ) from error
    rest = iter(grads)
    return torch.zeros_like(y) if grad_y is None else grad_y, [next(rest) if p.requires_grad else None for p in params]
