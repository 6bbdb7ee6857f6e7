"""What compiling leaves of an ODE block."""

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from odenet_lightning.block import ODEBlock, recorded_solves
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Backprop, Checkpoint, Gradient
from odenet_lightning.models import ODENet
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Midpoint, Solver, TorchDiffEq
from tests.blocks import GRADIENTS, make_block


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
