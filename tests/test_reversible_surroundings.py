"""Reversible's gradient among other solvers, noise, buffers, hooks and layers, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call, vmap

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, GradientError, UnknownTensorError
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    FieldError,
    Midpoint,
    Problem,
    Reversible,
    Solver,
    TorchDiffEq,
)
from tests.gradient_problems import (
    Generated,
    Hidden,
    Late,
    Noisy,
    Normed,
    Parametrized,
    Rectified,
    gradients_of,
    grads_of,
    largest_difference,
    made,
    mixer_problem,
    start,
)
from tests.problems import relative_error

TWO = Reversible(Midpoint(num_steps=2))


@pytest.mark.parametrize(
    "solver", [Midpoint(num_steps=2), Dopri5(), TorchDiffEq("dopri5")], ids=lambda solver: type(solver).__name__
)
def test_another_solver_is_refused_by_name_where_a_gradient_is_wanted(solver: Solver) -> None:
    field, y0 = mixer_problem()
    with pytest.raises(GradientError, match=rf"{type(solver).__name__}\(.*use the solver Reversible"):
        ReversibleGradient().solve(solver, Problem(field, y0))
    with torch.no_grad():
        found = ReversibleGradient().solve(solver, Problem(field, y0)).y
        assert torch.equal(found, solver.solve(Problem(field, y0)).y)


def test_noise_is_the_forward_pass_s() -> None:
    solver = Reversible(Midpoint(num_steps=3))
    results = [
        [*grads_of(made(Noisy, solver, gradient), start()), torch.rand(3)]
        for gradient in (Backprop(), ReversibleGradient(), Checkpoint())
    ]
    for other in results[1:]:
        for one, found in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, found, rtol=1e-4, atol=1e-6)
    with pytest.raises(FieldError, match=r"Noisy draws random numbers \(dropout\?\)"):
        made(Noisy, Reversible(Bosh3(0.1, 0.1, first_step=0.5)), ReversibleGradient())(start())


def test_a_generator_of_the_field_s_own_is_noticed() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y * torch.rand(y.shape, generator=self.generator)

    y1 = made(Own, TWO, ReversibleGradient())(start())
    with pytest.raises(GradientError, match=r"relative error of .* Own contracts .* or it gives other values"):
        y1.sum().backward()


def test_a_flow_that_contracts_too_strongly_is_refused() -> None:
    y0 = torch.ones(3, requires_grad=True)
    wide = torch.linspace(0.5, 1.0, 3)
    solution = ReversibleGradient().solve(Reversible(RK4(num_steps=40)), Problem(lambda t, y: -40 * wide * y, y0))
    with pytest.raises(GradientError, match=r"cannot be trusted.*Checkpoint with the solver RK4\(num_steps=40\)"):
        solution.y.sum().backward()


def test_running_statistics_and_written_buffers() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1  # pyright: ignore
            return self.weight * y / self.calls.item()  # pyright: ignore

    for make in (Normed, Counting):
        truth, block = made(make, TWO, Backprop()), made(make, TWO, ReversibleGradient())
        for one, other in zip(grads_of(truth, start()), grads_of(block, start()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        for name, buffer in truth.named_buffers():
            assert torch.equal(buffer, dict(block.named_buffers())[name]), name


@pytest.mark.parametrize("make", [Hidden, Late])
@pytest.mark.parametrize("wants_start", [True, False])
def test_a_tensor_without_a_gradient_is_named(make: Any, wants_start: bool) -> None:
    block = made(make, Reversible(Midpoint(num_steps=4)), ReversibleGradient())
    with pytest.raises(UnknownTensorError, match=r"uses a tensor .*nn\.ModuleList.*Backprop"):
        block(start().requires_grad_(wants_start)).sum().backward()


def test_other_guards_hold() -> None:
    with pytest.raises(FieldError, match="Rectified changes its input y in place"):
        made(Rectified, TWO, ReversibleGradient())(start())
    block = made(Generated, TWO, ReversibleGradient())
    block.field.generate()  # pyright: ignore[reportCallIssue]
    with pytest.raises(GradientError, match="compute it within the field, or use Backprop"):
        grads_of(block, start())
    block = made(Parametrized, TWO, ReversibleGradient())
    with nn.utils.parametrize.cached(), pytest.raises(GradientError, match=r"leave cached\(\) out"):
        block(start())
    block = made(lambda: ConvField(6), TWO, ReversibleGradient())
    with pytest.raises(GradientError, match=r"Reversible .* use Backprop"):
        vmap(lambda y: block(y[None]))(start().detach())
    with pytest.raises(GradientError, match=r"create_graph=True.*Backprop"):
        torch.autograd.grad(block(start()).sum(), block.field.conv.weight, create_graph=True)  # pyright: ignore
    loss = block(start()).sum()
    with torch.no_grad():
        block.field.conv.weight.mul_(2.0)  # pyright: ignore
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_may_be_given_moved_and_recomputed() -> None:
    block = made(lambda: ConvField(6), TWO, ReversibleGradient())
    truth = grads_of(block, start())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x):
        moved = grads_of(block, start())
    y0 = start()
    block.zero_grad()
    torch.utils.checkpoint.checkpoint(block, y0, use_reentrant=False).square().mean().backward()  # pyright: ignore
    again = [y0.grad, *(p.grad for p in block.parameters())]
    given = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    other = made(lambda: ConvField(6), TWO, ReversibleGradient())
    with torch.no_grad():
        other.field.conv.weight.zero_()  # pyright: ignore
    loss = functional_call(other, given, (start(),)).square().mean()
    replaced = [truth[0], *torch.autograd.grad(loss, tuple(given.values()))]
    for found in (moved, again, replaced):
        for one, right in zip(found, truth, strict=True):
            torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-8)


def test_later_layers_empty_solves_and_no_grad() -> None:
    net = nn.Sequential(made(lambda: ConvField(6), TWO, ReversibleGradient()), nn.ReLU(inplace=True))
    plain = nn.Sequential(made(lambda: ConvField(6), TWO, Backprop()), nn.ReLU())
    found, truth = start(), start()
    net(found).square().mean().backward()
    plain(truth).square().mean().backward()
    torch.testing.assert_close(found.grad, truth.grad, rtol=1e-5, atol=1e-8)
    y0 = start()
    ReversibleGradient().solve(TWO, Problem(net[0].field, y0, 0.5, 0.5)).y.sum().backward()  # pyright: ignore
    assert y0.grad is not None
    assert bool((y0.grad == 1).all())
    with torch.no_grad():
        assert torch.equal(net[0](start()), plain[0](start()))
        assert torch.equal(net[0].trajectory(start())[-1], net[0](start()))  # pyright: ignore


def test_autocast_and_the_adjoint_take_it() -> None:
    torch.manual_seed(0)
    field = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh())
    block = ODEBlock(Fixed(field), Reversible(Midpoint(num_steps=4)), ReversibleGradient())
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y1 = block(start())
        assert y1.dtype == torch.float32
        block.zero_grad()
        y1.square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None]))
    assert 0 < relative_error(grads[1], grads[0]) < 0.05
    field, y0 = mixer_problem()
    truth = gradients_of(Backprop(), RK4(num_steps=20), field, y0)[1]
    assert largest_difference(gradients_of(Adjoint(), Reversible(RK4(num_steps=20)), field, y0)[1], truth) < 1e-4


class Fixed(nn.Module):
    """The same network at all times."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)
