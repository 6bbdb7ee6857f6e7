"""A fixed-step solver to use instead of one whose steps depend on the images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from odenet_lightning.certificate import CHUNK, hardly_changed, solved_by
from odenet_lightning.exporting.graph import FromPixels
from odenet_lightning.models import Classifier
from odenet_lightning.solvers import RK4, SolverError, TorchDiffEq

STEPS = (1, 2, 4, 8)  # the last is suggested if all change too many predictions
IMAGES = 1_000  # that the solvers are compared on, at random


@dataclass(frozen=True)
class FixedInstead:
    """A fixed-step solver, and what it changes: predictions, and the accuracy from the network's own to this one's."""

    solver: RK4
    images: int
    accuracy: float
    fixed_accuracy: float
    changed: int


def needs_fixed_steps(net: Classifier) -> bool:
    """Whether a solver of the network chooses its steps by the state, or is torchdiffeq's, which cannot be traced."""
    return any(block.solver.controls_error or isinstance(block.solver, TorchDiffEq) for block in net.ode_blocks)


@torch.no_grad()
def predicted(net: Classifier, pixels: Tensor) -> Tensor:
    """The predicted classes of images, uint8 `[N, H, W]` or `[N, C, H, W]`."""
    return torch.cat([FromPixels(net)(chunk).argmax(1) for chunk in pixels.split(CHUNK)])


def fixed_instead(net: Classifier, pixels: Tensor, labels: Tensor) -> FixedInstead:
    """The `RK4` with the fewest steps that changes as few predictions as an ODE may (see `certificate`)."""
    drawn = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:IMAGES]
    pixels, labels = pixels[drawn], labels[drawn]
    own, found = predicted(net, pixels), None
    for steps in STEPS:
        solver = RK4(num_steps=steps)
        try:
            with solved_by(net, solver):
                fixed = predicted(net, pixels)
        except SolverError:  # max_nfe
            break
        before, after = (float((digits == labels).double().mean()) for digits in (own, fixed))
        found = FixedInstead(solver, len(labels), before, after, int((own != fixed).sum()))
        if hardly_changed(found.changed, found.images):
            break
    if found is None:
        raise SolverError("max_nfe of the network allows no step of RK4")
    return found
