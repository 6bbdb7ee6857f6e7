"""Regularizers: what can be added to training to make the dynamics cheap to solve.

`Kinetic`, `Jacobian`, `ErrorEstimate`, `Stiffness`, `RandomEnd`. A regularizer belongs to training alone: evaluation
solves the network as it is.
"""

from odenet_lightning.regularizers.base import Regularizer, regularized
from odenet_lightning.regularizers.integrals import Jacobian, Kinetic
from odenet_lightning.regularizers.random_end import RandomEnd
from odenet_lightning.regularizers.steps import ErrorEstimate, Stiffness

__all__ = ["ErrorEstimate", "Jacobian", "Kinetic", "RandomEnd", "Regularizer", "Stiffness", "regularized"]
