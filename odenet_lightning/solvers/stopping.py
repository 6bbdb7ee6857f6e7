"""What is said where a solve under error control cannot be finished."""

import torch
from torch import Tensor

from odenet_lightning.solvers.evaluation import host_value
from odenet_lightning.solvers.problem import SolverError, rms_norm

NOT_FINITE = "the state or the field is NaN or infinite"
TOO_SMALL = "the step has become too small to change t"


def smallest_step(y: Tensor, t0: float, t1: float) -> float:
    """Below this a step no longer changes the time that the field is given."""
    return torch.finfo(y.dtype).eps * max(abs(t0), abs(t1))


def stopped(
    name: str, tolerances: tuple[float, float], at: tuple[float, float], y: Tensor, evaluations: float, what: str
) -> SolverError:
    """Where the solve stopped, why, and what to try: of causes that any caller can change.

    Args:
        name: the solver's.
        tolerances: rtol and atol.
        at: t and h.
        y: state at t.
        evaluations: so far.
        what: why. Names the setting that would have to be larger, where it is a limit.
    """
    limit = next((word for word in ("max_steps", "max_nfe") if what.startswith(word)), None)
    remedies = [f"a larger {limit}"] if limit else []
    if what != NOT_FINITE:
        remedies.append("looser tolerances")
    return SolverError(
        f"{name} stopped at t = {at[0]:.6g} with h = {at[1]:.3g}: {what} (rtol = {tolerances[0]:g}, atol = "
        f"{tolerances[1]:g}, rms of the state {host_value(rms_norm(y.detach())):.3g}, {evaluations} evaluations so "
        f"far); try {', '.join(remedies)}{' or ' if remedies else ''}a fixed step"
    )
