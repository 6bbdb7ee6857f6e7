"""Solvers of dy/dt = f(t, y), y(t0) = y0: explicit Runge-Kutta methods and torchdiffeq's.

A `Problem` goes in, a `Solution` comes out: the state at t1 and its cost. A solver keeps no state.
"""

from odenet_lightning.solvers.adaptive import AdaptiveRungeKutta
from odenet_lightning.solvers.base import Solver
from odenet_lightning.solvers.evaluation import FieldError
from odenet_lightning.solvers.methods import RK4, Bosh3, Dopri5, Euler, Heun, Midpoint, Tsit5
from odenet_lightning.solvers.problem import (
    MAX_NFE,
    BackwardStats,
    Norm,
    Problem,
    Solution,
    SolverError,
    SolveStats,
    Step,
    VectorField,
    rms_norm,
)
from odenet_lightning.solvers.reversible import Reversible
from odenet_lightning.solvers.runge_kutta import FixedStep, RungeKutta, Tableau
from odenet_lightning.solvers.torchdiffeq import TorchDiffEq

__all__ = [
    "MAX_NFE",
    "RK4",
    "AdaptiveRungeKutta",
    "BackwardStats",
    "Bosh3",
    "Dopri5",
    "Euler",
    "FieldError",
    "FixedStep",
    "Heun",
    "Midpoint",
    "Norm",
    "Problem",
    "Reversible",
    "RungeKutta",
    "Solution",
    "SolveStats",
    "Solver",
    "SolverError",
    "Step",
    "Tableau",
    "TorchDiffEq",
    "Tsit5",
    "VectorField",
    "rms_norm",
]
