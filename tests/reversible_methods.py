"""The methods whose steps the tests make reversible."""

import pytest

from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    RungeKutta,
    Tsit5,
)

EQUAL: list[RungeKutta] = [
    *(Euler(4), Midpoint(1), Midpoint(5), Heun(step_size=0.3), RK4(3), Bosh3(num_steps=4), Dopri5(num_steps=2))
]
CONTROLLED: list[RungeKutta] = [
    *(Dopri5(1e-4, 1e-4), Bosh3(1e-5, 1e-5, first_step=0.5), Tsit5(1e-6, 1e-6, first_step="warm"))
]
each_method = pytest.mark.parametrize("method", EQUAL + CONTROLLED, ids=repr)
