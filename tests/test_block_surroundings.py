"""What is around a solve: later layers, inference mode, transforms, other images, outer blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Midpoint,
    Problem,
    Solver,
    TorchDiffEq,
)
from tests.gradient_problems import (
    SHAPE,
    Noisy,
    grads_of,
    made,
    start,
)
from tests.redoing import each_gradient, each_that_redoes


@each_gradient
def test_a_later_layer_may_work_in_place(gradient: Gradient) -> None:
    truth = grads_of(made(lambda: ConvField(6), Midpoint(num_steps=2), gradient), y0 := start())
    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    net = nn.Sequential(block, nn.ReLU(inplace=True))
    y0.grad = None
    net(y0).square().mean().backward()
    expected = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    z0 = start()
    expected(z0).relu().square().mean().backward()
    torch.testing.assert_close(y0.grad, z0.grad)
    assert truth[0] is not None
    for one, other in zip(block.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    "solver", [Midpoint(num_steps=2), Dopri5(), Bosh3(first_step=0.5), TorchDiffEq("dopri5")], ids=repr
)
@each_gradient
def test_empty_interval_and_empty_state_cost_nothing(gradient: Gradient, solver: Solver) -> None:
    def never(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    with torch.no_grad():
        for y0, t1 in ((start(), 0.0), (torch.zeros(0, 6, 8, 8), 1.0)):
            solution = gradient.solve(solver, Problem(never, y0, 0.0, t1))
            assert torch.equal(solution.y, y0)
            assert (solution.stats.evaluations, solution.stats.accepted) == (0, 0)
    block = ODEBlock(ConvField(6), solver, gradient)
    y0 = torch.zeros(0, 6, 8, 8, requires_grad=True)
    block(y0 * 1.0).relu_().sum().backward()
    assert y0.grad is not None


# --- fields that compute gradients


class Downhill(nn.Module):
    """f = -grad E(y) of an energy E."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            z = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.conv(z).square().sum() / 2, z, create_graph=torch.is_grad_enabled())
        return -slope


@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), Dopri5(1e-3, 1e-3), TorchDiffEq("dopri5")], ids=repr)
@each_gradient
def test_a_gradient_field_is_solved_in_inference_mode(gradient: Gradient, solver: Solver) -> None:
    block = made(Downhill, solver, gradient).eval()
    truth = block(start()).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(start()), truth)
    with torch.inference_mode():
        torch.testing.assert_close(block(start()), truth)
        assert block.trajectory(start()).isfinite().all()


# --- transforms


# torch's own forward mode scripts its decompositions
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_backprop_works_under_vmap_jvp_and_per_sample_gradients() -> None:
    for solver in (Midpoint(num_steps=2), RK4(num_steps=2), Dopri5(1e-5, 1e-5), Bosh3(0.1, 0.1, first_step=0.4)):
        block = made(lambda: ConvField(6), solver, Backprop()).double()
        y0 = start().detach().double()
        params: dict[str, Tensor] = dict(block.named_parameters())
        direction = torch.randn_like(y0)

        def loss(params: dict[str, Tensor], y: Tensor, block: ODEBlock = block) -> Tensor:
            return functional_call(block, params, (y[None],)).square().sum()

        together = vmap(lambda y, block=block: block(y[None])[0])(y0)
        # one step size for all, as in a batch; the guess at the first step averages otherwise
        slack = 10 * getattr(solver, "rtol", 1e-8)
        torch.testing.assert_close(together, block(y0), rtol=slack, atol=slack)
        per_sample = vmap(grad(loss), in_dims=(None, 0))(params, y0)
        block.zero_grad()
        block(y0).square().sum().backward()
        for name, p in block.named_parameters():
            torch.testing.assert_close(per_sample[name].sum(0), p.grad, rtol=1e3 * slack, atol=1e3 * slack)
        tangent = jvp(lambda y, block=block: block(y), (y0,), (direction,))[1]
        z0, weights = y0.clone().requires_grad_(), torch.randn_like(y0)
        block(z0).backward(weights)
        assert z0.grad is not None
        # forward and reverse mode differentiate the same steps: <w, J v> = <w J, v>
        torch.testing.assert_close((weights * tangent).sum(), (z0.grad * direction).sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@each_that_redoes
def test_others_refuse_transforms(gradient: Gradient) -> None:
    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    y0 = start().detach()
    attempts: list[Callable[[], Any]] = [
        lambda: jacrev(lambda y: block(y).sum())(y0),
        lambda: vmap(lambda y: block(y[None]))(y0),
        lambda: jvp(block, (y0,), (y0,)),
    ]
    for attempt in attempts:
        with pytest.raises(GradientError, match=f"{type(gradient).__name__} .* use Backprop"):
            attempt()
    with forward_ad.dual_level(), pytest.raises(GradientError, match="use Backprop"):
        block(forward_ad.make_dual(y0, y0))


# --- other images of the batch


@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [
        (Midpoint(num_steps=3), 0.0, 1e-4),
        (Dopri5(0.1, 0.1, first_step=0.5), 0.0, 1e-4),
        (Bosh3(0.1, 0.1), 1e-3, 1.0),
        (Dopri5(1e-3, 1e-3), 1e-5, 1e-1),
        (Dopri5(1e-5, 1e-5), 0.0, 1e-2),
    ],
    ids=repr,
)
def test_how_far_an_answer_depends_on_the_batch(solver: Solver, least: float, most: float) -> None:
    """One step size for a batch: an image's answer is right to the tolerance, and varies with the other images."""
    block = made(lambda: ConvField(6), solver, Backprop())
    scales = torch.logspace(-1, 1, 8)[:, None, None, None]
    y0 = scales * torch.randn(8, *SHAPE[1:], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together, alone = block(y0), torch.cat([block(image[None]) for image in y0])
    apart = float((together - alone).abs().max())
    assert least <= apart <= most


# --- blocks within fields


@each_gradient
def test_a_block_within_a_field_keeps_no_step(gradient: Gradient) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ODEBlock(ConvField(6), Dopri5(1e-3, 1e-3, first_step="warm"), gradient)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.inner(y) - y

    def block(outer: Gradient) -> ODEBlock:
        return made(Outer, Midpoint(num_steps=2), outer).double()

    y0 = start().double().detach().requires_grad_()
    truth, found = grads_of(block(Backprop()), y0), grads_of(nested := block(Checkpoint()), y0)
    assert nested.field.inner.warm_step is None  # pyright: ignore
    for one, other in zip(truth, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint()], ids=repr)
def test_a_block_within_torch_s_own_checkpoint(gradient: Gradient) -> None:
    block, y0 = made(Noisy, Midpoint(num_steps=2), gradient).eval(), start()
    expected = grads_of(block, y0)
    y0.grad = None
    block.zero_grad()
    torch.utils.checkpoint.checkpoint(block, y0, use_reentrant=False).square().mean().backward()
    for found, truth in zip([y0.grad, *(p.grad for p in block.parameters())], expected, strict=True):
        assert found is not None
        assert truth is not None
        assert torch.equal(found, truth)
