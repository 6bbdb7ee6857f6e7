"""Is a trained network an ODE? Its answers under its own solver beside those of an accurate one.

A network trained with few steps may have learned the steps: then it is a discrete network whose answers an accurate
solver changes (Ott et al. 2021, arXiv:2007.15386).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.gradients import Backprop, Gradient
from odenet_lightning.models import Classifier
from odenet_lightning.solvers import Dopri5, Problem, Solver, SolverError

TOLERANCE = 1e-4
CHUNK = 250  # images solved together
FEW = 16  # images whose gradient is computed, and that are solved alone
# of the predictions, what may change: one in a thousand, and one image in any case
MOST_CHANGED = 1e-3


@dataclass(frozen=True)
class Certificate:
    """What an accurate solver makes of a trained network.

    Attributes:
        images: number of images looked at.
        tolerance: rtol = atol of the accurate solver, a `Dopri5`.
        accuracy: under the network's own solver.
        accurate_accuracy: under the accurate one.
        changed: predictions that differ between the two.
        error_median: |y(1) - accurate y(1)| / |accurate y(1)| of an image, the median over images and ODE blocks.
        error_worst: the largest of them.
        reversibility: |y(0) - y(0) recomputed| / |y(0)| after an accurate solve to 1 and back, the worst image;
            infinite where the way back cannot be solved. `Adjoint` needs it small.
        gradient_error: relative error of the loss's gradient by the parameters, as trained, against the accurate one.
        coupling: the largest change of a logit when an image is solved alone instead of with others.
    """

    images: int
    tolerance: float
    accuracy: float
    accurate_accuracy: float
    changed: int
    error_median: float
    error_worst: float
    reversibility: float
    gradient_error: float
    coupling: float

    @property
    def is_ode(self) -> bool:
        """Whether the accurate solver changes as good as no prediction."""
        return self.changed <= max(1.0, MOST_CHANGED * self.images)

    def lines(self) -> list[str]:
        """As text, one line for each figure and the verdict last."""
        moved = (self.accurate_accuracy - self.accuracy) * 100
        verdict = (
            f"an ODE: an accurate solver changes {self.changed} of {self.images:,} predictions"
            if self.is_ode
            else f"not an ODE: an accurate solver changes {self.changed} of {self.images:,} predictions; the weights "
            "depend on their solver: train with more steps or smaller tolerances"
        )
        return [
            f"accuracy on {self.images:,} images {self.accuracy:.2%}, with Dopri5 at {self.tolerance:g} "
            f"{self.accurate_accuracy:.2%} ({moved:+.2f} points)",
            f"error of y(1) {self.error_median:.1e} (median), {self.error_worst:.1e} (worst image)",
            f"error of y(0) after solving to 1 and back {self.reversibility:.1e}",
            f"error of the gradient {self.gradient_error:.1e}",
            f"largest change of a logit without the other images {self.coupling:.1e}",
            verdict,
        ]

    def scalars(self) -> dict[str, float]:
        """As curves."""
        return {
            "accuracy": self.accuracy,
            "accurate_accuracy": self.accurate_accuracy,
            "changed": self.changed / self.images,
            "error_median": self.error_median,
            "error_worst": self.error_worst,
            "reversibility": self.reversibility,
            "gradient_error": self.gradient_error,
            "coupling": self.coupling,
        }


def accurate_solver(net: Classifier) -> Dopri5:
    """Dopri5 at 1e-4, or ten times stricter than the strictest solver that the network has."""
    used = [float(getattr(block.solver, "rtol", 1.0)) for block in net.ode_blocks if block.solver.controls_error]
    tolerance = min([TOLERANCE, *(rtol / 10 for rtol in used if rtol <= TOLERANCE)])
    return Dopri5(tolerance, tolerance)


@contextmanager
def solved_by(net: Classifier, solver: Solver, gradient: Gradient | None = None) -> Iterator[None]:
    """Have a network's blocks use another solver, and another gradient where given."""
    blocks = net.ode_blocks
    before = [(block.solver, block.gradient) for block in blocks]
    try:
        for block in blocks:
            block.solver, block.gradient = solver, gradient or block.gradient
        yield
    finally:
        for block, (own, own_gradient) in zip(blocks, before, strict=True):
            block.solver, block.gradient = own, own_gradient


def certify(net: Classifier, images: Tensor, labels: Tensor) -> Certificate | None:
    """Look into a network; None for one without an ODE block.

    Costs two accurate solves of all images, and some more of 16. The network is left as it was.

    Args:
        net: the network, on the device of the images.
        images: `[N, C, H, W]`, at least one.
        labels: `[N]`.

    Raises:
        SolverError: the accurate solver cannot solve it.
    """
    if not net.ode_blocks:
        return None
    training = net.training
    net.eval()
    try:
        with torch.inference_mode(False):
            return _certify(net, images.clone(), labels.clone())
    finally:
        net.train(training)


def _certify(net: Classifier, images: Tensor, labels: Tensor) -> Certificate:
    accurate = accurate_solver(net)
    own, exact, errors, returned = [], [], [], []
    with torch.no_grad():
        for chunk in images.split(CHUNK):
            with inputs_and_outputs(net) as states:
                own.append(net(chunk).argmax(1))
            with solved_by(net, accurate):
                exact.append(net(chunk).argmax(1))
            for block, y0, y1 in states:
                truth = accurate.solve(Problem(block.field, y0, max_nfe=block.max_nfe)).y
                errors.append(distances(y1, truth))
                returned.append(way_back(block, accurate, y0, truth))
        few = images[:FEW]
        together = net(few)
        alone = torch.cat([net(image) for image in few.split(1)])
    predicted, right = torch.cat(own), torch.cat(exact)
    every = torch.cat(errors)
    return Certificate(
        images=len(images),
        tolerance=accurate.rtol,
        accuracy=share(predicted == labels),
        accurate_accuracy=share(right == labels),
        changed=int((predicted != right).sum()),
        error_median=float(every.median()),
        error_worst=float(every.max()),
        reversibility=max(returned),
        gradient_error=gradient_error(net, accurate, few, labels[:FEW]),
        coupling=float((together - alone).abs().max()),
    )


@contextmanager
def inputs_and_outputs(net: Classifier) -> Iterator[list[tuple[ODEBlock, Tensor, Tensor]]]:
    """Collect the states that enter and leave a network's ODE blocks."""
    seen: list[tuple[ODEBlock, Tensor, Tensor]] = []

    def keep(block: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        assert isinstance(block, ODEBlock)
        seen.append((block, args[0].to(y.dtype), y))

    handles = [block.register_forward_hook(keep) for block in net.ode_blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def distances(y: Tensor, truth: Tensor) -> Tensor:
    """Of each image, |y - truth| / |truth|, `[B]`."""
    size = truth.flatten(1).norm(dim=1).clamp_min(torch.finfo(truth.dtype).tiny)
    return (y - truth).flatten(1).norm(dim=1) / size


def way_back(block: ODEBlock, accurate: Solver, y0: Tensor, y1: Tensor) -> float:
    """The worst image's error after solving from y(1) back to 0."""
    try:
        back = accurate.solve(Problem(block.field, y1, 1.0, 0.0, max_nfe=block.max_nfe))
    except SolverError:
        return float("inf")
    return float(distances(back.y, y0).max())


def gradient_error(net: Classifier, accurate: Solver, images: Tensor, labels: Tensor) -> float:
    """Relative error of the loss's gradient by all parameters."""
    params = [p for p in net.parameters() if p.requires_grad]

    def gradient() -> Tensor:
        loss = F.cross_entropy(net(images), labels)
        found = torch.autograd.grad(loss, params, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    with torch.enable_grad():
        trained = gradient()
        with solved_by(net, accurate, Backprop()):
            exact = gradient()
    return float((trained - exact).norm() / exact.norm())


def share(right: Tensor) -> float:
    """The part of the images for which something holds."""
    return float(right.double().mean())
