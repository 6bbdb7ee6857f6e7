"""Regularizer: the base class, and how a network is trained with one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn

from odenet_lightning.block import ode_blocks
from odenet_lightning.gradients import Gradient, GradientError
from odenet_lightning.solvers import Problem, Solution, Solver
from odenet_lightning.solvers.settings import Settings, check_positive_number


class Regularizer(Settings, ABC):
    """A change of the training solves, or a value of each that is added to the loss.

    The loss is cross-entropy + weight * value, the value being the mean over the network's ODE blocks.

    Attributes:
        name: the value is logged as `reg/NAME`.
        weight: factor on the value; 0 where the value is only logged.
    """

    name: ClassVar[str]
    weight: float = 0.0

    @abstractmethod
    def solve(self, gradient: Gradient, solver: Solver, problem: Problem) -> tuple[Solution, Tensor]:
        """Solve the problem so that gradients flow back through the solution's `y` and the value, a scalar.

        Raises:
            GradientError: the value cannot be computed with this solver, field or gradient method.
        """


@contextmanager
def regularized(net: nn.Module, regularizer: Regularizer | None) -> Iterator[list[Tensor]]:
    """Have a network's ODE blocks solve with a regularizer, if there is one; collects the value of each solve.

    Raises:
        ValueError: the network has no ODE block.
    """
    values: list[Tensor] = []
    if regularizer is None:
        yield values
        return
    blocks = ode_blocks(net)
    if not blocks:
        raise ValueError(f"{regularizer!r} is for ODE blocks, of which {type(net).__name__} has none: leave it out")
    own = [block.gradient for block in blocks]
    for block in blocks:
        block.gradient = _Regularized(block.gradient, regularizer, values)
    try:
        yield values
    finally:
        for block, gradient in zip(blocks, own, strict=True):
            block.gradient = gradient


class _Regularized(Gradient):
    """A gradient method that solves with a regularizer and collects its values."""

    def __init__(self, gradient: Gradient, regularizer: Regularizer, values: list[Tensor]) -> None:
        self.gradient, self.regularizer, self.values = gradient, regularizer, values

    def solve(self, solver: Solver, problem: Problem) -> Solution:
        """See `Gradient.solve`."""
        solution, value = self.regularizer.solve(self.gradient, solver, problem)
        self.values.append(value)
        return solution


class Weighted(Regularizer):
    """A value that is added to the loss; refuses solvers with `per_sample`."""

    def __init__(self, weight: float) -> None:
        check_positive_number("weight", weight)
        self.weight = weight

    def refuse_per_sample(self, solver: Solver) -> None:
        """Refuse a solver by which each image takes steps of its own.

        Raises:
            GradientError: with what to do.
        """
        if getattr(solver, "per_sample", False):
            raise GradientError(
                f"{type(self).__name__} needs one step size for all images of a batch: leave per_sample out, or train "
                "without the regularizer"
            )
