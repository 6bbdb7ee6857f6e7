"""How a solve is differentiated: `Backprop`, `Checkpoint`, `Reversible`, `Adjoint`. Each takes any solver, or refuses.

The first three give the exact gradient of the numbers that the solver computed (discretise, then
optimise); `Adjoint` solves the gradient's own differential equation (optimise, then discretise).
"""

from odenet_lightning.gradients.adjoint import Adjoint
from odenet_lightning.gradients.backprop import Backprop
from odenet_lightning.gradients.base import Gradient, GradientError
from odenet_lightning.gradients.checkpoint import Checkpoint
from odenet_lightning.gradients.leaves import UnknownTensorError
from odenet_lightning.gradients.reversible import Reversible

__all__ = ["Adjoint", "Backprop", "Checkpoint", "Gradient", "GradientError", "Reversible", "UnknownTensorError"]
