"""Gradients of images solved by themselves."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odenet_lightning.block import ODEBlock, recorded_solves
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.solvers import (
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Problem,
)
from odenet_lightning.solvers import per_sample as module
from tests.problems import relative_error
from tests.spin import Spin, states


def gradients(solver: AdaptiveRungeKutta, gradient: Gradient, y0: Tensor) -> tuple[list[Tensor], Any]:
    """By y0 and the field's parameters, of a loss that weighs images differently; and the cost."""
    field, start = Spin(), y0.clone().requires_grad_()
    solution = gradient.solve(solver, Problem(field, start, 0.0, 1.5))
    each = (solution.y.square() + solution.y * torch.linspace(-1.0, 1.0, 6).double().view(2, 3)).sum((1, 2))
    (each * torch.linspace(0.1, 2.0, len(y0)).double()).sum().backward()
    return [grad for grad in (start.grad, *(p.grad for p in field.parameters())) if grad is not None], solution.stats


@pytest.mark.parametrize("first_step", ["heuristic", 2.0])
def test_checkpoint_equals_backprop(first_step: Any) -> None:
    solver = Dopri5(1e-4, 1e-4, first_step=first_step, per_sample=True)
    truth, _ = gradients(solver, Backprop(), states())
    found, stats = gradients(solver, Checkpoint(), states())
    assert first_step != 2.0 or stats.rejected > 0
    for one, other in zip(found, truth, strict=True):
        assert relative_error(one, other) <= 1e-12
    assert stats.backward.evaluations == pytest.approx(6 * stats.accepted)


def test_gradient_of_an_image_is_its_own() -> None:
    """Of the batch's the parameters' gradients are the sum, whatever the gradient method."""
    solver, y0 = Dopri5(1e-3, 1e-3, per_sample=True), states(4)
    weights = torch.linspace(0.1, 2.0, 4).double()
    for gradient in (Backprop(), Checkpoint(), Adjoint()):
        together, _ = gradients(solver, gradient, y0)
        parts = []
        for image, weight in zip(y0, weights, strict=True):
            (by_start, *by_params), _ = gradients(solver, gradient, image[None])
            parts.append([grad * (weight / weights[0]) for grad in (by_start, *by_params)])
        torch.testing.assert_close(together[0], torch.cat([part[0] for part in parts]), rtol=1e-9, atol=1e-12)
        for place in (1, 2):
            total = torch.stack([part[place] for part in parts]).sum(0)
            torch.testing.assert_close(together[place], total, rtol=1e-9, atol=1e-12)


def test_adjoint_converges() -> None:
    truth, _ = gradients(Dopri5(1e-11, 1e-11), Backprop(), states())
    errors = []
    for tolerance in (1e-5, 1e-7, 1e-9):
        found, stats = gradients(Dopri5(tolerance, tolerance, per_sample=True), Adjoint(), states())
        errors.append(max(relative_error(one, other) for one, other in zip(found, truth, strict=True)))
        assert errors[-1] <= 1000 * tolerance
        assert stats.backward.y0_error <= 100 * tolerance
    assert errors[2] < errors[1] < errors[0]


def test_a_rejected_step_with_nan_leaves_the_gradient_alone() -> None:
    """A first step of 1 takes the larger image where the field's square root is NaN."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate * y * (2.0 - y).sqrt() * (1 + t * 0)

    y0 = torch.tensor([[0.1], [-40.0]], dtype=torch.float64)
    field, solver = Root(), Dopri5(1e-3, 1e-3, first_step=1.0, per_sample=True)
    solution = solver.solve(Problem(field, y0))
    assert solution.stats.images is not None
    assert solution.stats.images.rejected[0] == 0
    assert solution.stats.images.rejected[1] > 0
    solution.y.sum().backward()
    expected = 0.0
    for y in y0:
        alone = Root()
        Dopri5(1e-3, 1e-3, first_step=1.0).solve(Problem(alone, y[None])).y.sum().backward()
        assert alone.rate.grad is not None
        expected += float(alone.rate.grad)
    assert field.rate.grad is not None
    assert float(field.rate.grad) == pytest.approx(expected, rel=1e-9)


def test_kernel_and_operators_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    field = ConvField(4)
    y0 = (
        torch.randn(6, 4, 9, 9, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-1, 1, 6)[:, None, None, None]
    )
    found = []
    for taken in (True, False):
        if not taken:
            monkeypatch.setattr(module, "fused_step", lambda *args: None)
        block = ODEBlock(field, Bosh3(1e-2, 1e-2, first_step=0.4, per_sample=True), Backprop())
        block.zero_grad()
        with recorded_solves(block) as solves:
            y1 = block(y0)
        y1.square().mean().backward()
        found.append((y1.detach(), solves[0], [p.grad.clone() for p in field.parameters() if p.grad is not None]))
    (y, stats, grads), (y_plain, stats_plain, grads_plain) = found
    torch.testing.assert_close(y, y_plain, rtol=1e-4, atol=1e-4)
    assert stats.evaluations == stats_plain.evaluations
    largest = max(float(grad.abs().max()) for grad in grads_plain)
    for grad, plain in zip(grads, grads_plain, strict=True):
        assert float((grad - plain).abs().max()) <= 1e-4 * largest
