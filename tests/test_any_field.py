"""Any field, any solver, any gradient: right, or refused by an error of this project's own. There is no third outcome.

Fields are made at random out of what people write: time, dropout, buffers, operations in place, tensors that are no
parameters, shared and frozen parameters, blocks within fields, one block used twice; half of them within dynamics of
second order or with weights that are functions of t. The truth is a finite difference
for `Backprop`, and `Backprop` for the others. `Adjoint` is held to what it says of itself: the solver's own error
and by how much it missed y0, which it warns of where that is most of it. A norm over a batch of four contracts that
strongly.
"""

import random
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import Field, Galerkin, HeavyBall, SecondOrder
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    FieldError,
    Heun,
    Midpoint,
    Reversible,
    RungeKutta,
    Solver,
    SolverError,
    TorchDiffEq,
    Tsit5,
)

WIDTH = 3
# with each solver, what the adjoint's gradient may be off by: as much as the solver itself
SOLVERS: list[tuple[Solver, float]] = [
    (Euler(num_steps=200), 5e-2),
    (Midpoint(num_steps=40), 5e-3),
    (Heun(step_size=0.025), 5e-3),
    (RK4(num_steps=16), 1e-4),
    (Bosh3(1e-8, 1e-8, first_step=0.1), 1e-4),
    (Dopri5(1e-8, 1e-8, first_step="warm"), 1e-4),
    (Tsit5(1e-8, 1e-8), 1e-4),
    (Dopri5(1e-8, 1e-8, first_step="warm", per_sample=True), 1e-4),
    (Reversible(Midpoint(num_steps=40), 0.99), 5e-3),
    (TorchDiffEq("dopri5", 1e-8, 1e-8), 1e-4),
    (TorchDiffEq("rk4", options={"step_size": 1 / 16}), 1e-4),
]
GRADIENTS: list[Gradient] = [Backprop(), Checkpoint(), Checkpoint(slots=3), ReversibleGradient(), Adjoint()]
TRAITS = ("timed", "dropout", "buffer", "batch norm", "in place", "outer", "shared", "frozen", "unused", "nested")
REFUSED = {"dropout", "in place", "outer"}  # traits without which nothing may be refused
MIXES = {"batch norm"}  # images, which `per_sample` refuses


class AnyField(Field):
    """dy/dt = tanh of a linear map, and what its traits add to it."""

    def __init__(self, traits: set[str]) -> None:
        super().__init__()
        self.traits = traits
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first if "shared" in traits else nn.Linear(WIDTH, WIDTH)
        if "buffer" in traits:
            self.register_buffer("scale", torch.linspace(0.5, 1.0, WIDTH))
        if "batch norm" in traits:
            self.norm = nn.BatchNorm1d(WIDTH)
        if "outer" in traits:
            self.hidden = [nn.Linear(WIDTH, WIDTH).double()]
        if "unused" in traits:
            self.unused = nn.Parameter(torch.ones(2))
        if "nested" in traits:
            self.inner = ODEBlock(AnyField({"timed"}), Midpoint(num_steps=2), Backprop())
        if "frozen" in traits:
            self.first.bias.requires_grad_(False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if "in place" in self.traits:
            y.mul_(1.0)
        z = torch.tanh(self.first(y) + (t if "timed" in self.traits else 0.5))  # t is a scalar or [B, 1]
        z = self.second(z) * (self.scale if "buffer" in self.traits else 1.0)
        z = self.norm(z) if "batch norm" in self.traits else z
        z = z + self.hidden[0](y) if "outer" in self.traits else z
        z = self.inner(z) if "nested" in self.traits else z
        return F.dropout(z, 0.3, self.training) if "dropout" in self.traits else z


# with each, the width of the state; weights that jump over t are left out: few solvers keep their order there
DYNAMICS: dict[str, tuple[Callable[[Field], Field], int]] = {
    "plain": (lambda field: field, WIDTH),
    "second order": (SecondOrder, 2 * WIDTH),
    "heavy ball": (lambda field: HeavyBall(field, damping=0.4), 2 * WIDTH),
    "fourier": (lambda field: shaken(Galerkin(field, "fourier", 2)), WIDTH),
    "polynomial": (lambda field: shaken(Galerkin(field, "polynomial", 3)), WIDTH),
}


def shaken(field: Galerkin) -> Galerkin:
    """Weights that change over t: as made, they are the same at all times."""
    with torch.no_grad():
        for parameter in field.coefficients[1:].parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return field


def core(field: nn.Module) -> nn.Module:
    """The field within the dynamics, the first one where there are copies."""
    if isinstance(field, Galerkin):
        return field.coefficients[0]
    return field.field if isinstance(field, SecondOrder) else field


def gradient_of(block: ODEBlock, y0: Tensor, uses: int) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and its gradients, noise drawn from the same seed."""
    torch.manual_seed(3)
    block.zero_grad()
    block.warm_step = None
    start = y0.clone().requires_grad_()
    y = start * 1.0
    for _ in range(uses):
        y = block(y)
    loss = (y * torch.linspace(-1.0, 1.0, y.numel()).double().view_as(y)).sum() + y.square().mean()
    loss.backward()
    return loss.detach(), [start.grad, *(p.grad for p in block.parameters())]


def made(traits: set[str], dynamics: str, solver: Solver, gradient: Gradient, seed: int) -> ODEBlock:
    torch.manual_seed(seed)
    return ODEBlock(DYNAMICS[dynamics][0](AnyField(traits)).double(), solver, gradient)


def off_by(found: list[Tensor | None], truth: list[Tensor | None]) -> float:
    """The largest difference in units of the largest gradient; infinite where one has a gradient and one has none."""
    if any((one is None) != (other is None) for one, other in zip(found, truth, strict=True)):
        return float("inf")
    pairs = [(one, other) for one, other in zip(found, truth, strict=True) if one is not None and other is not None]
    largest = max(float(other.abs().max()) for _, other in pairs)
    return max(float((one - other).abs().max()) for one, other in pairs) / largest


def difference_quotient(
    traits: set[str], dynamics: str, solver: Solver, seed: int, y0: Tensor, uses: int, small: float
) -> tuple[float, float]:
    """The loss's derivative along a direction of the start and all parameters, by differences and by `Backprop`."""
    block = made(traits, dynamics, solver, Backprop(), seed)
    _, grads = gradient_of(block, y0, uses)
    params = [p for p in block.parameters() if p.requires_grad]
    if "outer" in traits:
        params += list(core(block.field).hidden[0].parameters())  # pyright: ignore
        grads += [p.grad for p in params[-2:]]
    generator = torch.Generator().manual_seed(seed)
    by_start, *directions = [torch.randn(x.shape, generator=generator).double() for x in (y0, *params)]
    slopes = {id(p): d for p, d in zip(params, directions, strict=True)}
    along = float((grads[0] * by_start).sum())  # pyright: ignore
    along += sum(float((p.grad * slopes[id(p)]).sum()) for p in params if p.grad is not None)
    losses = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for p in params:
                p.add_(slopes[id(p)], alpha=sign * small)
        losses.append(float(gradient_of(block, y0 + sign * small * by_start, uses)[0]))
        with torch.no_grad():
            for p in params:
                p.sub_(slopes[id(p)], alpha=sign * small)
    return (losses[0] - losses[1]) / (2 * small), along


def outcome(seed: int) -> str:
    """Try a case; returns "right" or "refused", and fails on anything else."""
    draw = random.Random(seed)
    solver, slack = SOLVERS[seed % len(SOLVERS)]
    gradient = GRADIENTS[seed // len(SOLVERS) % len(GRADIENTS)]
    each = getattr(solver, "per_sample", False)
    if isinstance(gradient, ReversibleGradient) and isinstance(solver, RungeKutta) and not each:
        solver = Reversible(solver)
    traits = {trait for trait in TRAITS if draw.random() < 0.2}
    uses, dynamics = draw.choice((1, 1, 2)), draw.choice(("plain", "plain", "plain", *DYNAMICS))
    y0 = torch.randn(4, DYNAMICS[dynamics][1], generator=torch.Generator().manual_seed(seed)).double()
    case = f"seed {seed}: {solver!r}, {gradient!r}, {dynamics}, {sorted(traits)}, used {uses} times"
    block, costs = made(traits, dynamics, solver, gradient, seed), []
    block.register_solve_hook(costs.append)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _, found = gradient_of(block, y0, uses)
    except (FieldError, GradientError) as error:
        unfit = isinstance(gradient, ReversibleGradient) and (
            not isinstance(solver, Reversible) or ("batch norm" in traits and "cannot be trusted" in str(error))
        )
        unfit = unfit or (each and gradient == Checkpoint(slots=3))
        refused = REFUSED | MIXES if each else REFUSED
        return "refused" if traits & refused or unfit else pytest.fail(f"{case}: refused without a reason: {error}")
    except SolverError as error:  # too stiff for the steps that it may take
        return "refused" if "batch norm" in traits else pytest.fail(f"{case}: {error}")
    if isinstance(gradient, Backprop):
        # a controller's choices count as constants, and the first step of the second use is the first one's
        # the larger difference hides a controller's choices, the smaller one a strong curvature
        tried = (difference_quotient(traits, dynamics, solver, seed, y0, uses, small) for small in (1e-6, 1e-8))
        assert any(along == pytest.approx(expected, rel=1e-4, abs=1e-4) for expected, along in tried), case
        return "right"
    truth = gradient_of(made(traits, dynamics, solver, Backprop(), seed), y0, uses)[1]
    missed = max(cost.backward.y0_error for cost in costs)
    if isinstance(gradient, Checkpoint | ReversibleGradient):
        # missed: 0 under Checkpoint; a batch norm over four images contracts without a limit
        assert off_by(found, truth) <= (1e-3 if "batch norm" in traits and missed else 1e-10 + 1000 * missed), case
        return "right"
    assert any("misses y0 by more than 10%" in str(warning.message) for warning in said) == (missed > 0.1), case
    # of a batch norm that contracts, the gradient was off by up to 180 times y0's error, falling with the steps alike
    most = 3 * slack + (250 if "batch norm" in traits else 10) * missed
    assert missed > 0.5 or off_by(found, truth) <= most, case
    return "right"


@pytest.mark.parametrize("first", range(0, 110, 22))
def test_right_or_refused(first: int) -> None:
    outcomes = [outcome(seed) for seed in range(first, first + 22)]
    assert {"right", "refused"} == set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(110, 2_200, 110))
def test_right_or_refused_at_length(first: int) -> None:
    assert {"right", "refused"} == {outcome(seed) for seed in range(first, first + 110)}
