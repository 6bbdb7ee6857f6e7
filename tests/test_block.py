"""The ODE block: what it returns, and its trajectory."""

import pytest
import torch

from odenet_lightning.block import ODEBlock, recorded_solves
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Midpoint, Problem, Solver, SolverError, TorchDiffEq, Tsit5
from tests.blocks import GRADIENTS, Decay, make_block
from tests.problems import conv_problem, count_calls, relative_error

# --- what it returns


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
@pytest.mark.parametrize("solver", [Midpoint(num_steps=5), Dopri5(), TorchDiffEq("dopri5")], ids=repr)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3, 4)])
def test_shape_is_kept(shape: tuple[int, ...], solver: Solver, gradient: Gradient) -> None:
    torch.manual_seed(0)
    y0 = torch.randn(shape)
    y1 = ODEBlock(Decay(), solver, gradient)(y0)
    assert y1.shape == shape
    torch.testing.assert_close(y1, y0 * 0.36788, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_state_is_single_precision_at_least(given: torch.dtype, returned: torch.dtype, gradient: Gradient) -> None:
    y0 = torch.rand(3).to(given).requires_grad_()
    block = ODEBlock(Decay(), Dopri5(1e-5, 1e-5), gradient)
    y1 = block(y0)
    assert y1.dtype == returned
    torch.testing.assert_close(y1, y0.to(returned) * 0.36787944, rtol=1e-4, atol=1e-5)
    y1.sum().backward()
    assert y0.grad is not None
    assert y0.grad.dtype == given


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_block_used_twice_in_one_forward_sums_its_gradients(gradient: Gradient) -> None:
    """The same as two blocks that share the field, or as a field of two names."""
    block, y0 = make_block(RK4(num_steps=8), gradient)
    with recorded_solves(block) as solves:
        block(block(y0)).square().mean().backward()
    together = [p.grad for p in block.parameters()]
    first, second = conv_problem(batch=2)[0], conv_problem(batch=2)[0]
    y1 = ODEBlock(first, RK4(num_steps=8), Backprop())(y0)
    ODEBlock(second, RK4(num_steps=8), Backprop())(y1).square().mean().backward()
    truth = [(p.grad, q.grad) for p, q in zip(first.parameters(), second.parameters(), strict=True)]
    for grad, (one, two) in zip(together, truth, strict=True):
        assert grad is not None
        assert one is not None
        assert two is not None
        # the bias in front of the norm has no gradient but rounding; the adjoint has its own error
        slack = 5e-3 if isinstance(gradient, Adjoint) else 1e-4
        torch.testing.assert_close(grad, one + two, rtol=slack, atol=slack * 0.1)
    assert len(solves) == 2


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_no_grad(gradient: Gradient) -> None:
    block, y0 = make_block(Dopri5(1e-3, 1e-3), gradient)
    with torch.no_grad(), recorded_solves(block) as solves:
        y1 = block(y0)
    assert not y1.requires_grad
    assert solves[-1].backward is None
    assert torch.equal(y1, block(y0))


@pytest.mark.parametrize("max_nfe", [13, 14])
@pytest.mark.parametrize("solver", [Dopri5(0.1, 0.1), TorchDiffEq("dopri5", 0.1, 0.1)], ids=repr)
def test_max_nfe(solver: Solver, max_nfe: int) -> None:
    """The post's solve costs 14 evaluations."""
    block, y0 = make_block(solver, max_nfe=max_nfe)
    with count_calls(block.field) as calls:
        if max_nfe == 14:
            block(y0)
        else:
            with pytest.raises(SolverError, match="max_nfe = 13"):
                block(y0)
    assert calls.count <= max_nfe


@pytest.mark.parametrize("max_nfe", [0, -1])
def test_bad_max_nfe_is_refused(max_nfe: int) -> None:
    with pytest.raises(ValueError, match="max_nfe"):
        make_block(Dopri5(), max_nfe=max_nfe)


def test_block_adds_no_keys_of_its_own() -> None:
    block, y0 = make_block(Dopri5(0.1, 0.1, first_step="warm"))
    block(y0)
    assert list(block.state_dict()) == [f"field.{key}" for key in block.field.state_dict()]


def test_repr_tells_solver_and_gradient() -> None:
    block, _ = make_block(Dopri5(0.25, 0.125, first_step="warm"), Checkpoint())
    for part in ("Dopri5", "rtol=0.25", "atol=0.125", "'warm'", "Checkpoint", "ConvField"):
        assert part in repr(block)


# --- its trajectory


@pytest.mark.parametrize(
    "solver",
    [
        Midpoint(num_steps=3),
        RK4(step_size=0.3),
        Dopri5(num_steps=3),
        Bosh3(1e-3, 1e-3),
        Dopri5(1e-4, 1e-4),
        Tsit5(1e-4, 1e-4),
        Dopri5(1e-3, 1e-3, first_step=0.3),
        Dopri5(0.1, 0.1, first_step="warm"),
        TorchDiffEq("dopri5", 1e-3, 1e-3),
    ],
    ids=repr,
)
def test_trajectory_is_the_forward_s(solver: Solver) -> None:
    """It starts at the input, ends at the output, and counts nowhere."""
    block, y0 = make_block(solver)
    block(y0)  # so that a warm solver has a step to start with
    y1 = block(y0)
    warm_step = block.warm_step
    with recorded_solves(block) as solves:
        states = block.trajectory(y0)
    assert states.shape == (5, *y0.shape)
    assert not states.requires_grad
    assert torch.equal(states[0], y0)
    assert relative_error(states[-1], y1) < 1e-5
    assert (block.warm_step, solves) == (warm_step, [])
    # in between it follows the solution: half the way by two halves
    middle = Dopri5(1e-6, 1e-6).solve(Problem(block.field, y0, 0.0, 0.5)).y
    assert relative_error(states[2], middle) < 0.1


def test_trajectory_at_given_times() -> None:
    block = ODEBlock(Decay(), Dopri5(1e-6, 1e-6), Backprop())
    times = (0.0, 0.1, 0.77, 2.0)
    states = block.trajectory(torch.ones(3), times)
    torch.testing.assert_close(states, torch.tensor(times).neg().exp()[:, None].expand(4, 3), rtol=1e-4, atol=1e-4)


def test_trajectory_keeps_double_precision() -> None:
    block = ODEBlock(Decay(), Dopri5(1e-10, 1e-10), Backprop())
    y0 = torch.ones(3, dtype=torch.float64)
    assert relative_error(block.trajectory(y0)[-1], block(y0)) < 1e-12
