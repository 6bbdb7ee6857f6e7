"""Fields that are none, work in place, or depend on tensors that would get no gradient are refused by name."""

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from odenet_lightning.block import ODEBlock
from odenet_lightning.gradients import Adjoint, Backprop, Gradient, GradientError, UnknownTensorError
from odenet_lightning.solvers import (
    RK4,
    Dopri5,
    FieldError,
    Midpoint,
    Problem,
    Solver,
    TorchDiffEq,
)
from tests.gradient_problems import (
    SHAPE,
    Generated,
    Hidden,
    Late,
    Parametrized,
    Rectified,
    grads_of,
    made,
    start,
)
from tests.redoing import each_gradient, each_that_redoes


@pytest.mark.parametrize("wants_start", [True, False])
@each_that_redoes
def test_a_tensor_without_a_gradient_is_named(gradient: Gradient, wants_start: bool) -> None:
    block = made(Hidden, Midpoint(num_steps=2), gradient)
    with pytest.raises(
        UnknownTensorError, match=r"Hidden uses a tensor \(shape \[6.*nn\.ModuleList.*Backprop"
    ) as error:
        block(start().requires_grad_(wants_start)).sum().backward()
    assert any(error.value.tensor is p for p in block.field.layers[0].parameters())  # pyright: ignore


def test_backprop_differentiates_by_it_all_the_same() -> None:
    block = made(Hidden, Midpoint(num_steps=2), Backprop())
    block(start()).sum().backward()
    assert block.field.layers[0].weight.grad.abs().max() > 0  # pyright: ignore


@each_that_redoes
def test_a_state_of_another_layer_is_named_by_that_layer(gradient: Gradient) -> None:
    """A field that closes over what an encoder made: its graph ends at the encoder's weight."""
    encoder = nn.Linear(3, 1, bias=False)
    context = encoder(torch.ones(3))
    with pytest.raises(UnknownTensorError, match=r"shape \[1, 3\]"):
        gradient.solve(Midpoint(num_steps=1), Problem(lambda t, y: y * context, start())).y.sum().backward()


class Keeping(nn.Module):
    """Makes its weight once a solve, and a grid of places once and for all."""

    def __init__(self, once: bool = True) -> None:
        super().__init__()
        self.conv, self.once, self.weight, self.grid = nn.Conv2d(6, 6, 3, padding=1), once, None, None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(-1.0, 1.0, y.shape[-1])
        if self.weight is None or not self.once or float(t) == 0.0:
            self.weight = self.conv.weight * 2
        return torch.tanh(F.conv2d(y, self.weight, self.conv.bias, padding=1)) * self.grid


@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), Dopri5()], ids=repr)
@each_that_redoes
def test_a_tensor_that_a_field_keeps_is_refused_where_its_gradient_would_be_lost(
    gradient: Gradient, solver: Solver
) -> None:
    with pytest.raises(FieldError, match="Keeping keeps weight from one evaluation for the next"):
        grads_of(made(Keeping, solver, gradient), start())
    truth, found = (grads_of(made(lambda: Keeping(once=False), solver, g), start()) for g in (Backprop(), gradient))
    for one, other in zip(truth, found, strict=True):
        tolerance = 0.1 if isinstance(gradient, Adjoint) else 1e-5
        assert (other - one).norm() < tolerance * one.norm()  # pyright: ignore


@pytest.mark.parametrize("mode", ["train", "no_grad", "inference"])
@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), Dopri5(0.1, 0.1), TorchDiffEq("dopri5", 0.1, 0.1)], ids=repr)
@each_gradient
def test_a_field_that_works_in_place_is_named(gradient: Gradient, solver: Solver, leaf: bool, mode: str) -> None:
    block = made(Rectified, solver, gradient)
    y0 = start() if leaf else start() * 1.0
    modes = {"train": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    with pytest.raises(FieldError, match="Rectified changes its input y in place"), modes[mode]():
        block(y0)


class Refilling(nn.Module):
    """Without gradients, fills one buffer again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.filled = nn.Conv2d(6, 6, 3, padding=1), torch.zeros(SHAPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        f = torch.tanh(self.conv(y))
        return f if torch.is_grad_enabled() else self.filled.copy_(f)


@pytest.mark.parametrize("mode", ["no_grad", "inference"])
@pytest.mark.parametrize(
    "solver", [RK4(num_steps=2), Dopri5(0.1, 0.1), TorchDiffEq("rk4", options={"step_size": 0.5})], ids=repr
)
def test_a_field_that_changes_what_it_has_returned_is_refused(solver: Solver, mode: str) -> None:
    block = made(Refilling, solver, Backprop())
    modes = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
    with pytest.raises(FieldError, match="Refilling changes in place what it has returned"), modes[mode]():
        block(start())


@pytest.mark.parametrize(
    ("field", "what"),
    [
        (lambda t, y: y[:, :1], r"the shape \[4, 1, 8, 8\], needs \[4, 6, 8, 8\]"),
        (lambda y, t: t * 2.0 if t.dim() == 0 else y * 2.0, r"the shape \[\].*in this order"),
        (lambda t, y: None, r"returned NoneType, needs a tensor of shape \[4, 6, 8, 8\]"),
        (lambda t, y: torch.complex(y, y), "returned torch.complex64, needs torch.float32"),
        (lambda t, y: (y > 0).long(), "returned torch.int64, needs torch.float32"),
        (
            lambda t, y: y @ y.new_zeros(3, 3),
            r"<lambda> failed as f\(t, y\), with .* of shape \[4, 6, 8, 8\].*RuntimeEr",
        ),
        (lambda y: y, r"<lambda> failed as f\(t, y\), .*TypeError: .* takes 1 positional argument but 2 were given"),
    ],
    ids=["broadcasts", "order", "None", "complex", "integers", "fails", "one argument"],
)
@each_gradient
def test_what_is_no_vector_field_is_refused(gradient: Gradient, field: Any, what: str) -> None:
    with pytest.raises(FieldError, match=what):
        gradient.solve(Midpoint(num_steps=2), Problem(field, start()))


@each_gradient
def test_a_complex_state_is_refused(gradient: Gradient) -> None:
    block = ODEBlock(nn.Identity(), Midpoint(num_steps=1), gradient)
    with pytest.raises(ValueError, match=r"not torch\.complex64: solve torch\.view_as_real"):
        block(torch.ones(2, dtype=torch.complex64))


@each_that_redoes
def test_parametrizations_kept_from_a_pass_without_gradients_are_refused(gradient: Gradient) -> None:
    block = made(Parametrized, Midpoint(num_steps=2), gradient)
    assert all(grad is not None for grad in grads_of(block, start()))
    with parametrize.cached(), pytest.raises(GradientError, match=r"leave cached\(\) out"):
        block(start())


@each_that_redoes
def test_a_tensor_without_a_gradient_is_found_at_any_time(gradient: Gradient) -> None:
    with pytest.raises(UnknownTensorError, match="no parameter of it"):
        grads_of(made(Late, Midpoint(num_steps=4), gradient), start())


@each_that_redoes
def test_a_weight_computed_before_the_solve_is_refused(gradient: Gradient) -> None:
    block = made(Generated, Midpoint(num_steps=2), gradient)
    block.field.generate()  # pyright: ignore[reportCallIssue]
    with pytest.raises(GradientError, match="compute it within the field, or use Backprop"):
        grads_of(block, start())
