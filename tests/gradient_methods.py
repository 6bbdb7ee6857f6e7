"""Gradient methods and solvers that several files of tests take."""

from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Reversible,
    Solver,
    TorchDiffEq,
    Tsit5,
)

GRADIENTS = [Backprop(), Checkpoint(), Adjoint()]
SOLVERS: dict[str, Solver] = {
    "euler": Euler(num_steps=4),
    "midpoint": Midpoint(num_steps=3),
    "heun": Heun(step_size=0.4),
    "rk4": RK4(num_steps=3),
    "bosh3": Bosh3(1e-4, 1e-4),
    "bosh3 in given steps": Bosh3(num_steps=3),
    "dopri5": Dopri5(1e-4, 1e-4),
    "dopri5 cut at the end": Dopri5(1e-4, 1e-4, first_step=0.4),
    "tsit5": Tsit5(1e-4, 1e-4),
    "reversible": Reversible(Heun(num_steps=3)),
    "torchdiffeq dopri5": TorchDiffEq("dopri5", 1e-4, 1e-4),
    "torchdiffeq bosh3": TorchDiffEq("bosh3", 1e-3, 1e-3),
    "torchdiffeq rk4": TorchDiffEq("rk4", options={"step_size": 0.4}),
    "torchdiffeq implicit_adams": TorchDiffEq("implicit_adams", options={"step_size": 0.2}),
}
