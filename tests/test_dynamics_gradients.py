"""Gradients of dynamics of second order and of weights that are functions of t, by every method."""

import pytest
import torch
from torch import Tensor

from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.regularizers import Jacobian, Kinetic, Regularizer
from odenet_lightning.solvers import RK4, Dopri5, Midpoint, Problem, Reversible, Solver
from tests.dynamics import DYNAMICS, every, images, made


@every
def test_gradients_agree(name: str) -> None:
    """Exact ones with each other; the adjoint's as far as its solver goes."""

    def found(solver: Solver, gradient: Gradient) -> list[Tensor]:
        net = made(name, solver, gradient).double()
        net(images(3).double()).square().sum().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    steps = Midpoint(num_steps=4)
    truth = found(steps, Backprop())
    assert len(truth) == len(list(made(name, steps).parameters()))
    for gradient in (Checkpoint(), Checkpoint(slots=2)):
        torch.testing.assert_close(found(steps, gradient), truth, rtol=1e-8, atol=1e-10)
    coupled = Reversible(steps, 0.9)
    torch.testing.assert_close(found(coupled, ReversibleGradient()), found(coupled, Backprop()), rtol=1e-6, atol=1e-8)
    if "piecewise" in name:
        return
    fine = [found(RK4(num_steps=100), gradient) for gradient in (Backprop(), Adjoint())]
    largest = max(float(grad.abs().max()) for grad in fine[0])
    assert max(float((one - other).abs().max()) for one, other in zip(*fine, strict=True)) < 1e-3 * largest


@every
def test_weights_may_be_replaced(name: str) -> None:
    """By other tensors, as `torch.func` does it; these get the gradients, whatever the gradient method."""
    grads = []
    for gradient in (Backprop(), Checkpoint(), Adjoint()):
        net = made(name, Midpoint(num_steps=64), gradient).double()
        torch.manual_seed(1)
        others = {key: (p + 0.1 * torch.randn_like(p)).detach().requires_grad_() for key, p in net.named_parameters()}
        torch.func.functional_call(net, others, (images(2).double(),)).square().sum().backward()
        assert all(p.grad is None for p in net.parameters())
        grads.append(torch.cat([p.grad.flatten() for p in others.values() if p.grad is not None]))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-10)
    assert len(grads[2]) == len(grads[0])
    assert float((grads[2] - grads[0]).abs().max() / grads[0].abs().max()) < 0.05


def test_gradients_agree_where_each_image_has_its_own_time() -> None:
    grads = []
    for gradient in (Backprop(), Checkpoint()):
        net = made("polynomial of second order", Dopri5(1e-3, 1e-3, per_sample=True), gradient).double()
        net(images(3).double()).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


@every
@pytest.mark.parametrize("regularizer", [Kinetic(), Jacobian()], ids=["Kinetic", "Jacobian"])
def test_regularizers_have_gradients(name: str, regularizer: Regularizer) -> None:
    values, grads = [], []
    for gradient in (Backprop(), Checkpoint()):
        block = made(name, Midpoint(num_steps=2), gradient).double().block
        torch.manual_seed(1)
        y0 = torch.randn(2, 8 if DYNAMICS[name][1] else 4, 5, 5, dtype=torch.float64)
        problem = Problem(block.field, y0)
        _, value = regularizer.solve(gradient, block.solver, problem)
        value.backward()
        values.append(value.detach())
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad for p in block.parameters()])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*grads)
    assert max(float(grad.abs().max()) for grad in grads[0]) > 0
