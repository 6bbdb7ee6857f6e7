"""The solvers' classes, how many steps show their order, and torchdiffeq's counts of the same solve."""

import math
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS as TORCHDIFFEQ_SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

from odenet_lightning.solvers import (
    RK4,
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Euler,
    FixedStep,
    Heun,
    Midpoint,
    Tsit5,
)
from tests.problems import ExactProblem, count_calls

FIXED: list[type[FixedStep]] = [Euler, Midpoint, Heun, RK4]
ADAPTIVE: list[type[AdaptiveRungeKutta]] = [Bosh3, Dopri5, Tsit5]
METHODS: list[type[FixedStep] | type[AdaptiveRungeKutta]] = [*FIXED, *ADAPTIVE]
FIXED_NAMES = [name for name, cls in TORCHDIFFEQ_SOLVERS.items() if issubclass(cls, FixedGridODESolver)]
ADAPTIVE_NAMES = [name for name in TORCHDIFFEQ_SOLVERS if name not in (*FIXED_NAMES, "scipy_solver")]

BAD_NUMBERS = [0, 0.0, -1, -1e-3, math.nan, math.inf]

# enough steps to be where the leading error term rules, few enough to stay clear of rounding
STEPS: dict[Any, list[int]] = {
    Euler: [64, 128, 256, 512],
    Midpoint: [64, 128, 256],
    Heun: [64, 128, 256],
    RK4: [32, 64, 128, 256],
    Bosh3: [24, 48, 96, 192],
    Dopri5: [32, 48, 72, 108],
    Tsit5: [48, 68, 96, 136],
}


def fitted_order(steps: list[int], errors: list[float]) -> float:
    """Slope of log error over log h."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def torchdiffeq_counts(problem: ExactProblem, name: str, tolerance: float) -> tuple[Tensor, int, int, int]:
    """torchdiffeq's solution, evaluations, accepted and rejected steps, counted without this project's help."""
    field = problem.field
    accepted, rejected = [], []
    field.callback_accept_step = lambda t, y, h: accepted.append(h)  # type: ignore[assignment]
    field.callback_reject_step = lambda t, y, h: rejected.append(h)  # type: ignore[assignment]
    times = torch.tensor([problem.t0, problem.t1], dtype=problem.y0.dtype)
    with count_calls(field) as calls:
        y = torchdiffeq.odeint(field, problem.y0, times, rtol=tolerance, atol=tolerance, method=name)
    assert isinstance(y, Tensor)
    return y[1], calls.count, len(accepted), len(rejected)


def nan_field(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.nan
