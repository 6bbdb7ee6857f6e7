"""The ODE block: what it returns, what it remembers, what compiling leaves of it."""

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from odenet_lightning.block import ODEBlock, recorded_solves
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.models import ODENet
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Midpoint, Problem, Solver, SolverError, TorchDiffEq, Tsit5
from tests.problems import conv_problem, count_calls, relative_error

GRADIENTS = [Backprop(), Checkpoint(), Adjoint()]


def make_block(solver: Solver, gradient: Gradient | None = None, **options: Any) -> tuple[ODEBlock, Tensor]:
    """A block around the post's field, and a state to put in."""
    field, y0 = conv_problem(batch=2)
    return ODEBlock(field, solver, gradient or Backprop(), **options), y0


class Decay(nn.Module):
    """dy/dt = -y, for states of any shape."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


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


# --- what it remembers


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_listeners_are_told_of_each_solve(gradient: Gradient) -> None:
    block, y0 = make_block(Dopri5(0.1, 0.1), gradient)
    with recorded_solves(block) as solves, count_calls(block.field) as calls:
        y1 = block(y0)
        there = calls.count
        y1.square().mean().backward()
        back = calls.count - there
        (stats,) = solves
        assert stats.evaluations == there == 14
        assert (stats.backward.evaluations if stats.backward else 0) == back
        block(y0)
    block(y0)
    assert len(solves) == 2, "nobody listens any more"


def test_a_copy_of_a_block_has_no_listeners() -> None:
    block = ODEBlock(Decay(), Midpoint(num_steps=1), Backprop())
    with recorded_solves(block) as solves:
        copy.deepcopy(block)(torch.ones(1))
        assert solves == []
        block(torch.ones(1))
    assert len(solves) == 1


def test_warm_step_is_learned_in_training_and_frozen_in_evaluation() -> None:
    block, y0 = make_block(Dopri5(1e-4, 1e-4, first_step="warm"))
    assert block.warm_step is None
    block.eval()
    block(y0)
    assert block.warm_step is None
    block.train()
    with recorded_solves(block) as solves:
        block(y0)
        learned = block.warm_step
        assert learned == solves[-1].next_step
        assert learned is not None
        block.eval()
        block(300 * y0)
    assert block.warm_step == learned
    assert solves[-1].next_step != learned  # it would have been another


def test_warm_step_saves_evaluations() -> None:
    block, y0 = make_block(Dopri5(0.1, 0.1, first_step="warm"))
    with recorded_solves(block) as solves:
        for _ in range(3):
            block(y0)
    assert [stats.evaluations for stats in solves] == [14, 7, 7]


def test_solver_without_a_controller_learns_no_step() -> None:
    block, y0 = make_block(RK4(num_steps=1))
    block(y0)
    assert block.warm_step is None


def test_evaluation_does_not_depend_on_what_was_evaluated_before() -> None:
    block, y0 = make_block(Dopri5(1e-3, 1e-3, first_step="warm"))
    block(y0)
    block.eval()
    with torch.no_grad(), recorded_solves(block) as stats:
        alone = block(y0)
        for scale in (30.0, 0.01, -5.0):
            block(scale * y0)
        assert torch.equal(block(y0), alone)
    assert stats[-1] == stats[0]
    assert len({s.evaluations for s in stats}) > 1  # the others were other solves


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


# --- compiled


@pytest.fixture
def counting_backend() -> Iterator[tuple[Callable[..., Any], list[int]]]:
    """A backend for torch.compile that runs the graphs as they are and counts the convolutions it ran."""
    convolutions = [0]

    def convolves(node: torch.fx.Node) -> bool:
        return any(name in str(node.target) for name in ("conv2d", "autograd_function_apply"))  # `fields.SameConv`

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        ours = sum(convolves(node) for node in graph.graph.nodes if node.op == "call_function")

        def run(*args: Tensor) -> Any:
            convolutions[0] += ours
            return graph(*args)

        return run

    torch._dynamo.reset()
    counters.clear()
    yield backend, convolutions
    torch._dynamo.reset()


def graphs_compiled() -> int:
    return counters["stats"]["unique_graphs"]


# dynamo itself looks at .grad of what comes out of the block
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
def test_whole_network_is_compiled_once(
    gradient: Gradient, counting_backend: tuple[Callable[..., Any], list[int]]
) -> None:
    """Whatever the number of steps: a loop that is traced is compiled anew for each."""
    torch.manual_seed(0)
    net = ODENet(solver=Dopri5(1e-2, 1e-2, first_step="warm"), gradient=gradient)
    keys = list(net.state_dict())
    compiled = torch.compile(net, backend=counting_backend[0])
    x = torch.randn(2, 1, 28, 28)
    compiled(x).square().mean().backward()
    graphs = graphs_compiled()
    assert graphs > 0
    with recorded_solves(net) as solves:
        for scale, tolerance in ((1.0, 1e-2), (20.0, 1e-3), (1.0, 1e-5)):
            net.block.solver = Dopri5(tolerance, tolerance, first_step="warm")
            warm_step = net.block.warm_step
            logits = compiled(scale * x)
            logits.square().mean().backward()
            net.block.warm_step = warm_step
            torch.testing.assert_close(logits, net(scale * x), rtol=1e-4, atol=1e-4)
    assert len({stats.evaluations for stats in solves}) > 2
    assert graphs_compiled() == graphs
    assert list(net.state_dict()) == keys


# dynamo itself looks at .grad of what comes out of a step
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint()], ids=lambda gradient: type(gradient).__name__)
@pytest.mark.parametrize(
    ("solver", "guess"),
    [
        (Midpoint(num_steps=2), 0),
        (Dopri5(num_steps=2), 0),
        (Bosh3(1e-3, 1e-3), 2),  # the guess at the first step, once a solve, need not be compiled
        (Dopri5(1e-3, 1e-3, first_step="warm"), 0),
        (TorchDiffEq("dopri5", 1e-3, 1e-3), 0),
    ],
    ids=["Midpoint", "Dopri5 fixed", "Bosh3", "Dopri5 warm", "TorchDiffEq"],
)
def test_compiled_solve_is_the_same_solve(
    solver: Solver,
    guess: int,
    gradient: Gradient,
    counting_backend: tuple[Callable[..., Any], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same numbers, evaluations and keys, and after some solves no new graphs."""
    backend, convolutions = counting_backend
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    block, y0 = make_block(copy.copy(solver), gradient)
    plain = make_block(solver, gradient)[0]
    keys = list(block.state_dict())
    block.compile_field()
    block(y0).square().mean().backward()
    block(y0).square().mean().backward()
    graphs = graphs_compiled()
    assert graphs > 0
    for scale in (1.0, 10.0, 0.1):
        block.zero_grad()
        plain.zero_grad()
        plain.warm_step = block.warm_step
        convolutions[0] = 0
        with recorded_solves(block) as solves, recorded_solves(plain) as plain_solves:
            y1, truth = block(scale * y0), plain(scale * y0)
        y1.square().mean().backward()
        truth.square().mean().backward()
        torch.testing.assert_close(y1, truth, rtol=1e-4, atol=1e-5)
        for param, true in zip(block.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(param.grad, true.grad, rtol=1e-2, atol=1e-4)
        (stats,), (expected,) = solves, plain_solves
        assert stats.backward == expected.backward
        assert stats.evaluations == expected.evaluations
        assert stats.last_step == pytest.approx(expected.last_step, rel=1e-3)
        back = 0 if stats.backward is None else stats.backward.evaluations
        assert convolutions[0] == stats.evaluations + back
    assert graphs_compiled() == graphs
    assert list(block.state_dict()) == keys
    assert torch.equal(block.trajectory(y0)[0], y0)


def test_compiled_block_can_be_pickled() -> None:
    """As processes that start others do; what was compiled is left behind."""
    block = ODEBlock(ConvField(2), RK4(num_steps=2), Backprop())
    block.compile_field()
    again = pickle.loads(pickle.dumps(block))
    y = torch.rand(2, 2, 5, 5)
    torch.testing.assert_close(again(y), ODEBlock(block.field, RK4(num_steps=2), Backprop())(y))
