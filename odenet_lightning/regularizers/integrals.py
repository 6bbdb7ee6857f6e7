"""Kinetic and Jacobian: integrals along the path, as one more state per image."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from odenet_lightning.gradients import Gradient, GradientError
from odenet_lightning.regularizers.augmented import joined, parts
from odenet_lightning.regularizers.base import Weighted
from odenet_lightning.solvers import Problem, Solution, Solver
from odenet_lightning.solvers.evaluation import evaluate, name_of


class _Augmented(nn.Module, ABC):
    """The field of z = (y, e): dy/dt = f(t, y), and de/dt = rate(t, y), a number per image."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.field, self.shape = problem.field, problem.y0.shape
        self.__qualname__ = name_of(problem.field)  # what errors call it

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, `[B, N + 1]`."""
        return joined(*self.slopes(t, parts(z, self.shape)[0]))

    @abstractmethod
    def slopes(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return dy/dt and de/dt."""


class _KineticField(_Augmented):
    """de/dt = |f|^2 / N."""

    def slopes(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return dy/dt and de/dt."""
        f = evaluate(self.field, t, y)
        return f, f.flatten(1).square().mean(1)


class _JacobianField(_Augmented):
    """de/dt = |v^T df/dy|^2 / N for a probe v that the whole solve keeps."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.probe = torch.randn_like(problem.y0)

    def slopes(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return dy/dt and de/dt."""
        is_recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            y = y if is_recorded else y.detach().requires_grad_()
            f = evaluate(self.field, t, y)
            if not f.requires_grad:  # f depends on neither y nor parameters
                return f, f.new_zeros(len(f))
            (row,) = torch.autograd.grad(
                f, y, self.probe, create_graph=is_recorded, allow_unused=True, materialize_grads=True
            )
        return f, row.flatten(1).square().mean(1)


class _Integral(Weighted):
    """The integral over a solve of a rate, the mean over its images, as one more state per image.

    The solver controls the error of y alone, so that y and its steps are those of a solve without it; the integral has
    the method's order. `Adjoint`'s backward solve controls the error of all states.
    """

    field: ClassVar[type[_Augmented]]

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def solve(self, gradient: Gradient, solver: Solver, problem: Problem) -> tuple[Solution, Tensor]:
        """See `Regularizer.solve`."""
        self.refuse_per_sample(solver)
        y0 = problem.y0
        if torch.is_grad_enabled() and not y0.requires_grad:  # for the derivative with respect to y
            y0 = y0.detach().requires_grad_()
        augmented = replace(
            problem,
            field=self.field(problem),
            y0=joined(y0, y0.new_zeros(len(y0))),
            norm=lambda z: problem.norm(z[:, :-1]),
        )
        solution = gradient.solve(solver, augmented)
        y, e = parts(solution.y, y0.shape)
        return replace(solution, y=y, steps=()), e.mean()


class Kinetic(_Integral):
    """Kinetic energy of the path: integral over t of |f(t, y(t))|^2 / N, for N entries of an image's state.

    The state moves along straighter lines, at a speed as even as possible (the optimal-transport cost of Benamou and
    Brenier 2000). Exact for the discrete solution under `Backprop` and `Checkpoint`; under `Adjoint` to its tolerance.
    An evaluation costs hardly more than without it. A field that ends with a norm, as `ConvField` does, has an |f| set
    by the norm's scale: the regularizer can then only make that smaller.

    Source: Finlay, Jacobsen, Nurbekyan, Oberman 2020, "How to train your neural ODE", arXiv:2002.02798.

    Args:
        weight: factor on the value, `reg/kinetic`.
    """

    name = "kinetic"
    field = _KineticField


class Jacobian(_Integral):
    """Size of the field's Jacobian along the path: integral over t of |df/dy|_F^2 / N, estimated.

    Hutchinson's estimate, |v^T df/dy|^2 for a v of N standard normal numbers per image, unbiased; v is drawn once per
    solve, since a new v at each evaluation would make de/dt no function of t and y. A small Jacobian keeps
    neighbouring paths parallel. Exact for that v under `Backprop` and `Checkpoint`; under `Adjoint` to its tolerance.
    With a relu in the field df/dy jumps, and the gradient leaves out what moving a jump would change.

    Do not use it when training time matters: each derivative is differentiated again, and a training step takes two to
    four times as long as with `Kinetic`. A field run by torch.compile is refused, as that has no second derivatives.

    Source: Finlay, Jacobsen, Nurbekyan, Oberman 2020, "How to train your neural ODE", arXiv:2002.02798.

    Args:
        weight: factor on the value, `reg/jacobian`.
    """

    name = "jacobian"
    field = _JacobianField

    def solve(self, gradient: Gradient, solver: Solver, problem: Problem) -> tuple[Solution, Tensor]:
        """See `Regularizer.solve`."""
        modules = problem.field.modules() if isinstance(problem.field, nn.Module) else ()
        if any(module._compiled_call_impl is not None for module in modules):
            raise GradientError("torch.compile has no second derivatives, which Jacobian needs: train without compile")
        return super().solve(gradient, solver, problem)
