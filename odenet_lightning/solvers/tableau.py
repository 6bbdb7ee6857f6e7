"""Tableau: the coefficients that make an explicit Runge-Kutta method; the methods' own tables are in methods.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge-Kutta method with s stages.

    k_i = f(t + c_i h, y + h sum_j a_ij k_j);  y(t + h) ~ y + h sum_i b_i k_i.

    Attributes:
        order: the error of a step is O(h^(order + 1)).
        a: the s - 1 rows below the first, strictly lower triangular.
        b: weights of the step.
        c: times of the stages, in units of h.
        error: weights of the error estimate b - b*, over the stages and, as the last entry,
            f(t + h, y(t + h)), which is the next step's first stage ("first same as last").
            None where the method has no embedded partner.
        mid: weights, over the same, of the state at half a step, for dense output of order 4; None
            falls back to the cubic Hermite interpolant (order 3).
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    error: tuple[float, ...] | None = None
    mid: tuple[float, ...] | None = None
