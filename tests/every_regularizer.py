"""Regularizers and gradient methods that several files of tests take."""

from odenet_lightning.gradients import Backprop, Checkpoint
from odenet_lightning.regularizers import (
    ErrorEstimate,
    Jacobian,
    Kinetic,
    RandomEnd,
    Stiffness,
)

EVERY = (Kinetic(), Jacobian(), ErrorEstimate(), Stiffness(), RandomEnd())
EXACT = (Backprop(), Checkpoint(), Checkpoint(slots=2))


def name(x: object) -> str:
    return type(x).__name__
