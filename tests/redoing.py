"""Gradient methods, all of them and those that evaluate the field again in the backward pass."""

import pytest

from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient

GRADIENTS: list[Gradient] = [Backprop(), Checkpoint(), Checkpoint(slots=2), Adjoint()]
REDOING: list[Gradient] = [Checkpoint(), Checkpoint(slots=2), Adjoint()]
each_gradient = pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
each_that_redoes = pytest.mark.parametrize("gradient", REDOING, ids=repr)
