"""The adjoint and the unit of the loss, and its tolerances."""

import pytest
import torch
import torch.utils.checkpoint

from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint
from odenet_lightning.solvers import (
    Dopri5,
    Midpoint,
    Problem,
    Solver,
    TorchDiffEq,
)
from tests.gradient_problems import (
    SHAPE,
    Noisy,
    made,
    start,
)


@pytest.mark.parametrize("solver", [Dopri5(0.1, 0.1), Dopri5(1e-3, 1e-3), Midpoint(num_steps=3)], ids=repr)
def test_adjoint_does_not_depend_on_the_loss_s_unit(solver: Solver) -> None:
    results = []
    for scale in (1.0, 1e-6, 1000.0, 65536.0):
        block = made(lambda: ConvField(6), solver, Adjoint()).double()
        y0 = start().double().detach().requires_grad_()
        solution = block.gradient.solve(solver, Problem(block.field, y0))
        (scale * solution.y.square().mean()).backward()
        assert solution.stats.backward is not None
        grads = [y0.grad, *(p.grad for p in block.parameters())]
        results.append((solution.stats.backward.evaluations, [g / scale for g in grads if g is not None]))
    for evaluations, grads in results[1:]:
        assert evaluations == results[0][0]
        for grad_scaled, truth in zip(grads, results[0][1], strict=True):
            torch.testing.assert_close(grad_scaled, truth, rtol=1e-9, atol=1e-12)


def test_torchdiffeq_s_adjoint_does() -> None:
    counts = []
    for scale in (1.0, 1000.0):
        block = made(lambda: ConvField(6), Dopri5(1e-3, 1e-3), Adjoint(normalise=False))
        solution = block.gradient.solve(block.solver, Problem(block.field, start()))
        (scale * solution.y.square().mean()).backward()
        assert solution.stats.backward is not None
        counts.append(solution.stats.backward.evaluations)
    assert counts[1] > counts[0]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_adjoint_hands_on_a_cotangent_without_a_size(value: float) -> None:
    """A loss scale that overflows is for the scaler to find, and a loss without a gradient for nobody."""
    y0 = start()
    made(lambda: ConvField(6), Dopri5(1e-3, 1e-3), Adjoint())(y0).backward(torch.full(SHAPE, value))
    assert y0.grad is not None
    assert bool((y0.grad == 0).all()) if value == 0.0 else bool(y0.grad.isnan().all())


@pytest.mark.parametrize(
    "solver", [Midpoint(num_steps=2), Dopri5(num_steps=2), TorchDiffEq("rk4", options={"step_size": 0.5})]
)
def test_tolerances_of_the_adjoint_need_error_control(solver: Solver) -> None:
    with pytest.raises(ValueError, match="takes fixed steps, for which rtol and atol mean nothing"):
        made(Noisy, solver, Adjoint(rtol=1e-8)).eval()(start())
