"""The compiled kernels give what PyTorch's operators give."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Backprop, Checkpoint
from odenet_lightning.kernels import compiled as kernel_library
from odenet_lightning.kernels.compiled import Library
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Euler, Heun, Midpoint, Solver, Tsit5
from odenet_lightning.solvers.runge_kutta import RungeKutta, fused_step, plan_of
from tests.kernel_fields import ROOT, ZERO, in_double, is_fused, made, needs_compiler, off_by
from tests.problems import count_calls

METHODS: list[RungeKutta] = [Euler(1), Midpoint(1), Heun(1), RK4(1), Bosh3(), Dopri5(), Tsit5()]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads, for the test only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def in_operators(field: ConvField) -> ConvField:
    """A copy that a hook keeps from the kernel."""
    twin = copy.deepcopy(field)
    twin.norm.register_forward_hook(lambda *_: None)
    return twin


def answers(field: ConvField, y: Tensor, cotangent: Tensor) -> list[Tensor | None]:
    """f(y) and its gradients by y and the parameters."""
    start = y.to(field.conv.weight.dtype, copy=True).requires_grad_()
    field.zero_grad()
    f = field(ZERO, start)
    f.backward(cotangent.to(f.dtype))
    return [f.detach(), start.grad, *(p.grad for p in field.parameters())]


@needs_compiler
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 24), st.integers(2, 17), st.integers(3, 19), st.integers(0, 9))
def test_evaluation_is_as_pytorch_s(
    build: Library, batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    field = made(channels, seed)
    y, cotangent = torch.randn(2, batch, channels, height, width)
    found, truth = answers(field, y, cotangent), answers(in_double(field), y, cotangent)
    plain = answers(in_operators(field), y, cotangent)
    assert is_fused(field(ZERO, y))
    for own, right, other in zip(found, truth, plain, strict=True):
        # sums over few pixels cancel, and where a channel hardly varies, its norm makes every float32 number worse
        assert off_by(own, right) <= max(1e-5, 10 * off_by(other, right))
    with torch.no_grad():
        assert torch.equal(field(ZERO, y), found[0])  # pyright: ignore[reportArgumentType]


@needs_compiler
@pytest.mark.parametrize("channels", [1, 2, 3, 6, 7, 12, 13, 24])
def test_the_post_s_images(build: Library, channels: int) -> None:
    """At 26 x 26, as the post has them, to 2e-6."""
    field = made(channels)
    y, cotangent = torch.randn(2, 5, channels, 26, 26)
    for own, right in zip(answers(field, y, cotangent), answers(in_double(field), y, cotangent), strict=True):
        assert off_by(own, right) <= 2e-6


def step_answers(
    method: RungeKutta, field: ConvField, given: list[Tensor], with_end: bool, with_first: bool
) -> tuple[float, list[Tensor | None]]:
    """A step's error ratio, its new state and last slope, and the gradients by y, k_first and the parameters."""
    y, k, by_y1, by_last = (x.to(field.conv.weight.dtype, copy=True) for x in given)
    y, k, h = y.requires_grad_(), k.requires_grad_(), -0.3
    field.zero_grad()
    fused = fused_step(field, plan_of(method.tableau, with_end), h, y, k if with_first else None, (1e-2, 1e-3))
    if fused is None:
        y1, ks = method.step(field, 0.0, h, y, k if with_first else None, with_end)
        last, ratio = ks[-1], 0.0
        if with_end and method.tableau.error:
            error = h * sum(weight * stage for weight, stage in zip(method.tableau.error, ks, strict=True))
            ratio = float((error / (1e-3 + 1e-2 * torch.maximum(y.abs(), y1.abs()))).detach().square().mean().sqrt())
    else:
        y1, last, ratio = fused.y1, fused.k_last, fused.error_ratio
    loss = (y1 * by_y1).sum()
    if with_end:
        assert last is not None
        loss = loss + (last * by_last).sum()
    loss.backward()
    ends = [y1.detach(), last.detach() if with_end and last is not None else y1.detach()]
    return ratio, [*ends, y.grad, k.grad if with_first else y.grad, *(p.grad for p in field.parameters())]


@needs_compiler
@pytest.mark.parametrize("with_first", [False, True])
@pytest.mark.parametrize("with_end", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_step_is_as_the_solver_s(build: Library, method: RungeKutta, with_end: bool, with_first: bool) -> None:
    field = made(3)
    given = list(torch.randn(4, 5, 3, 9, 11))
    assert fused_step(field, plan_of(method.tableau, with_end), 0.1, given[0]) is not None
    ratio, found = step_answers(method, field, given, with_end, with_first)
    true_ratio, truth = step_answers(method, in_double(field), given, with_end, with_first)
    assert ratio == pytest.approx(true_ratio, rel=1e-4)  # a difference of nearly equal sums
    for own, right in zip(found, truth, strict=True):
        if right is None:  # with f(y) known, Euler's step evaluates nothing
            assert isinstance(method, Euler)
            assert own is None or not own.any()
        else:
            assert off_by(own, right) <= 4e-6
    with torch.no_grad():
        fused = fused_step(field, plan_of(method.tableau, with_end), -0.3, given[0], given[1] if with_first else None)
    assert fused is not None
    assert torch.equal(fused.y1, found[0])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("with_first", [False, True])
@pytest.mark.parametrize("with_end", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_plan_knows_how_often_a_step_evaluates(method: RungeKutta, with_end: bool, with_first: bool) -> None:
    field, y = in_double(made(2)), torch.randn(1, 2, 5, 5).double()
    with count_calls(field) as calls:
        method.step(field, 0.0, 0.1, y, y if with_first else None, with_end)
    assert plan_of(method.tableau, with_end).evaluations(with_first) == calls.count


@needs_compiler
@pytest.mark.parametrize(
    "solver",
    [Dopri5(1e-2, 1e-2), Dopri5(1e-2, 1e-2, "warm"), Bosh3(1e-3, 1e-3, 0.1), Midpoint(3), Tsit5(num_steps=2)],
    ids=repr,
)
@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint()], ids=repr)
def test_solve_and_its_costs_are_the_same(build: Library, solver: Solver, gradient: Backprop | Checkpoint) -> None:
    field = made(6)
    y0, cotangent = torch.randn(2, 4, 6, 26, 26)
    results = []
    for each in (field, in_double(field)):
        block, costs = ODEBlock(each, solver, gradient), []
        block.register_solve_hook(costs.append)
        for _ in range(2):
            each.zero_grad()
            start = y0.to(each.conv.weight.dtype, copy=True).requires_grad_()
            y1 = block(start)
            y1.backward(cotangent.to(y1.dtype))
        grads = [start.grad, *(p.grad for p in each.parameters())]  # pyright: ignore[reportPossiblyUnboundVariable]
        results.append((costs, [y1.detach(), *grads]))  # pyright: ignore[reportPossiblyUnboundVariable]
    (costs, found), (true_costs, truth) = results
    for cost, other in zip(costs, true_costs, strict=True):
        assert (cost.evaluations, cost.accepted, cost.rejected) == (other.evaluations, other.accepted, other.rejected)
        assert cost.last_step == pytest.approx(other.last_step, rel=1e-4)
        assert cost.backward == other.backward
    for own, right in zip(found, truth, strict=True):
        assert off_by(own, right) <= 1e-4


@needs_compiler
def test_numbers_do_not_depend_on_threads(build: Library, threads: Callable[[int], None]) -> None:
    if build.parallel is None:
        pytest.skip("torch's threads cannot be reached here")
    field = made(6)
    y, cotangent = torch.randn(2, 13, 6, 26, 26)
    found = []
    for count in (1, 2, 3, 2):
        threads(count)
        found.append(answers(field, y, cotangent))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))  # pyright: ignore


@needs_compiler
def test_nan_stays_nan(build: Library) -> None:
    y = torch.randn(2, 2, 5, 5)
    y[0, 0, 2, 2] = torch.nan
    f = made(2)(ZERO, y)
    assert f[0].isnan().all()
    assert f[1].isfinite().all()
    fused = fused_step(made(2), plan_of(Dopri5().tableau, True), 0.1, y, None, (0.1, 0.1))
    assert fused is not None
    assert fused.error_ratio != fused.error_ratio


@needs_compiler
@pytest.mark.parametrize(
    ("given", "capability", "name"), [("0", "AVX2", None), ("1", "AVX2", "avx2"), ("1", "DEFAULT", None)]
)
def test_the_environment_and_the_cpu_choose(
    compiled: dict[str, Library], monkeypatch: pytest.MonkeyPatch, given: str, capability: str, name: str | None
) -> None:
    if "avx2" not in compiled:
        pytest.skip("this CPU has no AVX2")
    monkeypatch.setenv("ODENET_KERNELS", given)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = SimpleNamespace(origin=compiled["avx2"].functions._name)
    monkeypatch.setattr(kernel_library, "find_spec", lambda asked: found if asked.endswith("avx2") else None)
    chosen = kernel_library.library.__wrapped__()
    assert (chosen and chosen.name) == name


@needs_compiler
def test_peak_counts_what_it_does(compiled: dict[str, Library]) -> None:
    lanes = {"avx512": 16, "avx2": 8, "portable": 4}
    for name, build in compiled.items():
        assert build.multiply_adds(10) % (10 * 6 * lanes[name]) == 0


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
def test_the_kernel_for_gpus_in_tritons_interpreter() -> None:
    command = [sys.executable, str(Path(__file__).with_name("triton_errors.py"))]
    settings = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    errors = [float(value) for value in found.stdout.split()]
    assert len(errors) == 15
    assert max(errors) < 1e-6
