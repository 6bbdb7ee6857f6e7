"""All that a field depends on beside t, y and its parameters is the same in the backward pass, or it is refused."""

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.solvers import (
    Bosh3,
    Dopri5,
    FieldError,
    Midpoint,
    Reversible,
    RungeKutta,
    Solver,
    TorchDiffEq,
)
from tests.gradient_problems import (
    Noisy,
    Normed,
    SpectrallyNormed,
    grads_of,
    made,
    start,
)
from tests.redoing import each_gradient, each_that_redoes


def test_checkpoint_draws_the_forward_pass_s_noise_again() -> None:
    results: list[list[Any]] = []
    for gradient in (Backprop(), Checkpoint()):
        block = made(Noisy, Midpoint(num_steps=2), gradient)
        results.append(grads_of(block, start()))
        after = torch.rand(3)
        results[-1].append(after)  # and the numbers drawn after it are not touched by the backward pass
    (start_grad, *plain), (replayed_grad, *replayed) = results
    assert torch.equal(start_grad, replayed_grad), "bit for bit"
    assert torch.equal(plain.pop(), replayed.pop())
    for one, other in zip(plain, replayed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # summed over the steps in another order


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        (Midpoint(num_steps=2), Adjoint()),
        (Dopri5(0.1, 0.1), Backprop()),
        (Bosh3(0.1, 0.1, first_step=0.5), Checkpoint()),
        (TorchDiffEq("dopri5", 0.1, 0.1), Backprop()),
    ],
    ids=repr,
)
def test_noise_that_no_ode_could_have_is_refused(solver: Solver, gradient: Gradient) -> None:
    block = made(Noisy, solver, gradient)
    with pytest.raises(FieldError, match=r"Noisy draws random numbers \(dropout\?\).*Backprop or Checkpoint"):
        block(start())
    block.eval()(start())  # without noise it is one


def test_a_generator_of_the_field_s_own_is_noticed() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y * torch.rand(y.shape, generator=self.generator)

    y1 = made(Own, Midpoint(num_steps=2), Checkpoint())(start())
    with pytest.raises(FieldError, match="Own gave other values when Checkpoint evaluated it again"):
        y1.sum().backward()


@each_gradient
def test_functional_call_differentiates_by_the_given_parameters(gradient: Gradient) -> None:
    def gradients(params: dict[str, Tensor], block: ODEBlock) -> tuple[Tensor, ...]:
        loss = functional_call(block, params, (start(),)).square().mean()
        return torch.autograd.grad(loss, tuple(params.values()))

    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    torch.manual_seed(5)
    given = {name: torch.randn_like(p).requires_grad_() for name, p in block.named_parameters()}
    other = ODEBlock(ConvField(6), Midpoint(num_steps=2), gradient)
    other.load_state_dict(given)
    other(start()).square().mean().backward()
    for grad_given, p in zip(gradients(given, block), other.parameters(), strict=True):
        torch.testing.assert_close(grad_given, p.grad, rtol=1e-6, atol=1e-8)
    made_from = {name: p * 1.0 for name, p in given.items()}  # no leaves, as of a network that makes weights
    for grad_made, p in zip(gradients(made_from, block), other.parameters(), strict=True):
        torch.testing.assert_close(grad_made, p.grad, rtol=1e-6, atol=1e-8)
    assert all(p.grad is None for p in block.parameters())


@each_that_redoes
def test_saved_tensors_may_be_moved(gradient: Gradient) -> None:
    """Hooks give back other tensors than the module's own."""
    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    truth = grads_of(block, start())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x):
        moved = grads_of(block, start())
    for one, other in zip(truth, moved, strict=True):
        torch.testing.assert_close(one, other)


@each_that_redoes
def test_a_hook_of_a_parameter_gets_the_whole_gradient_once(gradient: Gradient) -> None:
    """Not the part of each step, and then their sum again: it may clip."""
    hooked: list[Tensor] = []
    for method in (Backprop(), gradient):
        block = made(lambda: ConvField(6), Dopri5(1e-3, 1e-3), method)
        weight, calls = block.field.conv.weight, []  # pyright: ignore
        weight.register_hook(lambda grad, calls=calls: calls.append(1) or grad * 2)  # pyright: ignore
        grads_of(block, start())
        assert len(calls) == 1
        hooked.append(weight.grad)  # pyright: ignore
    off = (hooked[1] - hooked[0]).norm() / hooked[0].norm()
    assert off < (0.1 if isinstance(gradient, Adjoint) else 1e-5)


@each_that_redoes
def test_a_field_that_was_switched_to_evaluation_before_the_backward_pass_is_refused(gradient: Gradient) -> None:
    block = made(Normed, Midpoint(num_steps=2), gradient)
    loss = block(start()).square().mean()
    block.eval()
    with pytest.raises(GradientError, match=r"Normed was switched between train\(\) and eval\(\)"):
        loss.backward()


@each_gradient
def test_running_statistics_are_updated_once_per_evaluation_of_the_forward_pass(gradient: Gradient) -> None:
    truth = made(Normed, Midpoint(num_steps=2), Backprop())
    expected = grads_of(truth, start())
    block = made(Normed, Midpoint(num_steps=2), gradient)
    found = grads_of(block, start())
    assert int(block.field.norm.num_batches_tracked) == 4  # pyright: ignore
    for name, buffer in truth.named_buffers():
        assert torch.equal(buffer, dict(block.named_buffers())[name]), name
    if not isinstance(gradient, Adjoint):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other)


def test_a_buffer_that_the_field_reads_and_writes_is_as_it_was_at_each_step() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1  # pyright: ignore
            return self.weight * y / self.calls.item()  # pyright: ignore

    plain, replayed = (grads_of(made(Counting, Midpoint(num_steps=3), g), start()) for g in (Backprop(), Checkpoint()))
    for one, other in zip(plain, replayed, strict=True):
        torch.testing.assert_close(one, other)


class Twice(nn.Module):
    """Two layers, each used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.same_conv, self.same_norm = self.conv, self.norm

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.same_norm(self.same_conv(self.norm(self.conv(y)))))


@each_that_redoes
def test_a_layer_under_two_names_keeps_its_tensors(gradient: Gradient) -> None:
    """`torch.func.functional_call` leaves it with the replaced ones if it is given them under both."""
    block = made(Twice, Midpoint(num_steps=2), gradient)
    tensors = [*block.parameters(), *block.buffers()]
    tensors[0].register_hook(lambda grad: grad)  # has parameters replaced, too
    truth = made(Twice, Midpoint(num_steps=2), Backprop())
    found, expected = grads_of(block, start()), grads_of(truth, start())
    assert all(one is other for one, other in zip(tensors, (*block.parameters(), *block.buffers()), strict=True))
    for one, other in zip(truth.buffers(), block.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    if isinstance(gradient, Checkpoint):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("gradient", "coupled"), [(Checkpoint(), False), (Checkpoint(slots=1), False), (ReversibleGradient(), True)]
)
def test_a_buffer_that_changes_within_a_step_under_error_control_is_refused(gradient: Gradient, coupled: bool) -> None:
    """Its gradient was off by half a per cent or more; with fixed steps it is right, as it is in evaluation."""

    def block(method: RungeKutta, gradient: Gradient) -> ODEBlock:
        return made(SpectrallyNormed, Reversible(method) if coupled else method, gradient)

    for tolerance in (0.1, 1e-5):  # at which a recomputed step's end is off by 3e-5 and by 4e-6
        with pytest.raises(FieldError, match=r"SpectrallyNormed gave other values .*spectral norm"):
            block(Dopri5(tolerance, tolerance), gradient)(start())
    for method, is_training in ((Midpoint(num_steps=2), True), (Dopri5(), False)):
        blocks = [block(method, each).train(is_training) for each in (Backprop(), gradient)]
        for one, other in zip(*(grads_of(block, start()) for block in blocks), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gradient", "coupled"), [(Checkpoint(), False), (ReversibleGradient(), True)])
def test_running_statistics_that_no_value_depends_on_are_not_refused(gradient: Gradient, coupled: bool) -> None:
    method = Dopri5(1e-2, 1e-2)
    blocks = [made(Normed, Reversible(method) if coupled else method, each) for each in (Backprop(), gradient)]
    for one, other in zip(*(grads_of(block, start()) for block in blocks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(*(block.buffers() for block in blocks), strict=True):
        assert torch.equal(one, other)
