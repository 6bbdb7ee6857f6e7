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
FEW = 16  # images whose gradient is computed, that are solved back, and that are solved alone
# the share of predictions that may change, and one image in any case. Of 10,000 test digits, 0.03 to 0.26 % change in
# fast.yaml's networks and 0 to 0.33 % with batches of 64 (n = 6 each), of 5,000 training digits 0.9 % in a network
# that was trained with single steps of Bosh3
MOST_CHANGED = 3e-3


def hardly_changed(changed: int, images: int) -> bool:
    """Whether so few of the images' predictions have changed that both solvers solve the same ODE."""
    return changed <= max(1.0, MOST_CHANGED * images)


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
        reversibility: |y(0) - y(0) recomputed| / |y(0)| after an accurate solve to 1 and back, the worst of 16 images;
            infinite where it cannot be solved backwards. `Adjoint` needs it small.
        gradient_error: relative error of the gradient of 16 images' loss by the parameters, as trained.
        coupling: the largest change of a logit when one of 16 images is solved alone instead of with the others.
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
        return hardly_changed(self.changed, self.images)

    def rows(self) -> list[tuple[str, str]]:
        """As text: names and values, the verdict last."""
        moved = (self.accurate_accuracy - self.accuracy) * 100
        changes = f"an accurate solver changes {self.changed} of {self.images:,} predictions"
        advice = "the weights depend on their solver; train with more steps, a smaller tolerance or --is_ode.keep 0.3"
        return [
            (
                f"with Dopri5 at {self.tolerance:g}",
                f"{self.accurate_accuracy:.2%} instead of {self.accuracy:.2%} of "
                f"{self.images:,} images ({moved:+.2f} points)",
            ),
            ("error of y(1)", f"{self.error_median:.1e} (median), {self.error_worst:.1e} (worst image)"),
            ("error of y(0)", f"{self.reversibility:.1e} after solving to 1 and back"),
            ("error of gradient", f"{self.gradient_error:.1e}"),
            ("without the others", f"a logit changes by up to {self.coupling:.1e} when its image is solved alone"),
            ("is it an ODE", f"yes: {changes}" if self.is_ode else f"no: {changes}: {advice}"),
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

    Costs an accurate solve of all images, and some more of 16. The network is left as it was.

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
    own, exact, errors = [], [], []
    with torch.no_grad():
        for chunk in images.split(CHUNK):
            with inputs_and_outputs(net) as states:
                own.append(net(chunk).argmax(1))
            with solved_by(net, accurate), inputs_and_outputs(net) as true_states:
                exact.append(net(chunk).argmax(1))
            errors += errors_of_blocks(accurate, states, true_states)
        few = images[:FEW]
        alone = torch.cat([net(image) for image in few.split(1)])
        coupling = float((net(few) - alone).abs().max())
        returned = reversibility(net, accurate, few)
    predicted, right, every = torch.cat(own), torch.cat(exact), torch.cat(errors)
    return Certificate(
        images=len(images),
        tolerance=accurate.rtol,
        accuracy=share(predicted == labels),
        accurate_accuracy=share(right == labels),
        changed=int((predicted != right).sum()),
        error_median=float(every.median()),
        error_worst=float(every.max()),
        reversibility=returned,
        gradient_error=gradient_error(net, accurate, few, labels[:FEW]),
        coupling=coupling,
    )


States = list[tuple[ODEBlock, Tensor, Tensor]]  # a block, the states that enter it and that leave it


@contextmanager
def inputs_and_outputs(net: Classifier) -> Iterator[States]:
    """Collect the states that enter and leave a network's ODE blocks."""
    seen: States = []

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


def errors_of_blocks(accurate: Solver, states: States, true_states: States) -> list[Tensor]:
    """Each block's error for each image; only the first one has been solved accurately from the same states."""
    errors = []
    for index, (block, y0, y1) in enumerate(states):
        exact = true_states[0][2] if index == 0 else accurate.solve(Problem(block.field, y0, max_nfe=block.max_nfe)).y
        errors.append(distances(y1, exact))
    return errors


def reversibility(net: Classifier, accurate: Solver, images: Tensor) -> float:
    """The worst image's and block's error after solving to 1 and back to 0."""
    with solved_by(net, accurate), inputs_and_outputs(net) as states:
        net(images)
    worst = 0.0
    for block, y0, y1 in states:
        try:
            back = accurate.solve(Problem(block.field, y1, 1.0, 0.0, max_nfe=block.max_nfe)).y
        except SolverError:
            return float("inf")
        worst = max(worst, float(distances(back, y0).max()))
    return worst


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
