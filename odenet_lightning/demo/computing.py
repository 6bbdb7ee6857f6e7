"""What the page shows, as tensors: an answer, the state over t, and 500 digits in a plane."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odenet_lightning.block import ODEBlock
from odenet_lightning.data import Digits, normalise
from odenet_lightning.models import Classifier, Composed, OneBlock
from odenet_lightning.solvers import RK4, Dopri5, Euler, Midpoint, Problem, Solver, TorchDiffEq
from odenet_lightning.solvers.problem import unchanged

TIMES = tuple(index / 20 for index in range(21))
EVERY_TIME = Midpoint(num_steps=len(TIMES) - 1)  # takes a step from each time to the next
FIXED = {"Euler": Euler, "Midpoint": Midpoint, "RK4": RK4}
ADAPTIVE = "Dopri5"
SOLVERS = (*FIXED, ADAPTIVE)
CHUNK = 100  # digits of the plane solved together


@dataclass(frozen=True)
class Parts:
    """A network with one ODE block: logits = head(block(stem(images)))."""

    stem: nn.Module
    block: ODEBlock
    head: nn.Module


def parts_of(net: Classifier) -> Parts | None:
    """The parts of a network; None if it is not a stem, one ODE block and a head."""
    if isinstance(net, OneBlock):
        return Parts(net.stem, net.block, net.head)
    if isinstance(net, Composed) and isinstance(net.trunk, ODEBlock) and len(net.ode_blocks) == 1:
        return Parts(net.stem, net.trunk, net.head)
    return None


def solver_of(name: str, steps: int, exponent: float) -> Solver:
    """The solver that the page's controls describe."""
    return Dopri5(10.0**exponent, 10.0**exponent) if name == ADAPTIVE else FIXED[name](num_steps=steps)


@dataclass(frozen=True)
class Answer:
    """The network's answer for one digit under a solver.

    Attributes:
        probabilities: of the K classes, `[K]`.
        evaluations: of the field.
        steps: the time at which each step began; empty for torchdiffeq's solvers, which do not show them.
    """

    probabilities: Tensor
    evaluations: int
    steps: tuple[float, ...]


@torch.no_grad()
def answer(parts: Parts, pixels: Tensor, solver: Solver) -> Answer:
    """Classify a digit, uint8 `[28, 28]`."""
    block = parts.block
    problem = Problem(
        block.field, parts.stem(normalise(pixels[None])), 0.0, 1.0, block.warm_step, block.max_nfe, record=unchanged
    )
    solution = solver.solve(problem)
    probabilities = parts.head(solution.y).softmax(1)[0]
    steps = () if isinstance(solver, TorchDiffEq) else tuple(float(step.t) for step in solution.steps)
    return Answer(probabilities, round(solution.stats.evaluations), steps)


@torch.no_grad()
def states_over_time(parts: Parts, pixels: Tensor, solver: Solver) -> Tensor:
    """y(t) of digits, uint8 `[N, 28, 28]`, at `TIMES`: `[T, N, C, H, W]`."""
    block = parts.block
    problem = Problem(block.field, parts.stem(normalise(pixels)), warm_step=block.warm_step, max_nfe=block.max_nfe)
    return solver.trajectory(problem, TIMES)


@torch.no_grad()
def read_at_each_time(parts: Parts, states: Tensor) -> Tensor:
    """How the head would answer at each time, for the states of one digit, `[T, 1, C, H, W]` -> `[T, K]`."""
    return parts.head(states[:, 0]).softmax(1)


@dataclass(frozen=True)
class Plane:
    """Digits on the first two principal components of y(1), the same plane at all times.

    Attributes:
        centre: the mean of y(1), `[D]`.
        axes: the components, `[D, 2]`.
        points: of the digits at `TIMES`, `[T, N, 2]`.
        labels: of the digits, `[N]`.
        changed: whether 20 midpoint steps give a digit another prediction than the network's solver, `[N]`.
    """

    centre: Tensor
    axes: Tensor
    points: Tensor
    labels: Tensor
    changed: Tensor

    def project(self, states: Tensor) -> Tensor:
        """States `[T, N, C, H, W]` -> points `[T, N, 2]`."""
        return (states.flatten(2) - self.centre) @ self.axes


@torch.no_grad()
def plane_of(parts: Parts, digits: Digits) -> Plane:
    """The plane of some digits, solved with 20 midpoint steps whatever solver the network was trained with."""
    block = parts.block
    states, changed = [], []
    for chunk in digits.images.split(CHUNK):
        y0 = parts.stem(normalise(chunk))
        solution = EVERY_TIME.solve(Problem(block.field, y0, max_nfe=block.max_nfe, record=unchanged))
        changed.append(parts.head(block(y0)).argmax(1) != parts.head(solution.y).argmax(1))
        states.append(torch.stack([*(step.y for step in solution.steps), solution.y]).flatten(2))
    y1 = torch.cat([chunk[-1] for chunk in states])
    centre = y1.mean(0)
    torch.manual_seed(0)  # the decomposition starts at random
    _, _, axes = torch.pca_lowrank(y1 - centre, q=min(6, *y1.shape), center=False)
    axes = axes[:, :2]
    points = torch.cat([(chunk - centre) @ axes for chunk in states], 1)
    return Plane(centre, axes, points, digits.labels, torch.cat(changed))
