"""A Runge-Kutta step as kernels take and give it: the plan of its points, and its result."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class FusedStep:
    """A step's result.

    Attributes:
        y1: the new state.
        k_last: f(y1), where asked for.
        squares: of each image, the sum of the squares of error / (atol + rtol max(|y|, |y1|)), `[B]` in float64, where
            a tolerance was given.
    """

    y1: Tensor
    k_last: Tensor | None
    squares: Tensor | None

    @property
    def error_ratio(self) -> float:
        """Root mean square of error / tolerance over the batch."""
        return 0.0 if self.squares is None else math.sqrt(float(self.squares.sum()) / self.y1.numel())

    @property
    def error_ratios(self) -> Tensor:
        """The same for each image."""
        assert self.squares is not None
        return (self.squares * (len(self.y1) / self.y1.numel())).sqrt()


@dataclass(frozen=True)
class Plan:
    """What a kernel computes: the steps of a tableau, with an error estimate and f at the end if wanted.

    Attributes:
        rows: a_ij below the diagonal, one row for each point after the first; the last has the tableau's weights.
        error: weights of the error estimate over all points; empty where none is wanted.
        with_end: whether f is evaluated at the last point.
    """

    rows: Rows
    error: tuple[float, ...]
    with_end: bool

    @property
    def points(self) -> int:
        """Number of points, the first and the last included."""
        return len(self.rows) + 1

    def evaluations(self, has_first: bool) -> int:
        """How often f is evaluated, given whether f of the first point is known."""
        return self.points - 1 + self.with_end - has_first

    @cached_property
    def coefficients(self) -> tuple[Any, Any]:
        """The matrix of a_ij and the error's weights as C reads them."""
        return as_c([(), *self.rows], self.points), as_c([self.error], self.points) if self.error else None

    @cached_property
    def addresses(self) -> tuple[int, int | None]:
        """The addresses of these arrays."""
        a, error = self.coefficients
        return ctypes.addressof(a), error and ctypes.addressof(error)


def as_c(rows: Sequence[Sequence[float]], width: int) -> Any:
    """Rows as an array of doubles, one after another, filled up with zeros."""
    values = [value for row in rows for value in (*row, *[0.0] * (width - len(row)))]
    return (ctypes.c_double * len(values))(*values)
