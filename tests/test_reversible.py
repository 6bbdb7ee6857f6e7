"""The solver Reversible and its gradient: order, cost, exactness, memory, stability, and what they refuse."""

import math
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, vmap

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, GradientError, UnknownTensorError
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.kernels import library
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    FieldError,
    Heun,
    Midpoint,
    Problem,
    Reversible,
    RungeKutta,
    Solver,
    SolverError,
    TorchDiffEq,
    Tsit5,
)
from odenet_lightning.solvers.reversible import DAMPING
from odenet_lightning.studies.memory import LiveBytes
from tests.gradient_problems import (
    Generated,
    Hidden,
    Late,
    Noisy,
    Normed,
    Parametrized,
    Rectified,
    gradients_of,
    grads_of,
    largest_difference,
    loss_of,
    made,
    mixer_problem,
    saved_bytes,
    start,
)
from tests.methods import fitted_order
from tests.problems import PROBLEMS, Decay, conv_problem, count_calls, oscillator, relative_error, swing

EQUAL: list[RungeKutta] = [
    *(Euler(4), Midpoint(1), Midpoint(5), Heun(step_size=0.3), RK4(3), Bosh3(num_steps=4), Dopri5(num_steps=2))
]
CONTROLLED: list[RungeKutta] = [
    *(Dopri5(1e-4, 1e-4), Bosh3(1e-5, 1e-5, first_step=0.5), Tsit5(1e-6, 1e-6, first_step="warm"))
]
each_method = pytest.mark.parametrize("method", EQUAL + CONTROLLED, ids=repr)
TWO = Reversible(Midpoint(num_steps=2))


# --- the solver


# without the problems on which terms of orders 5 and 6 cancel until the error is lost in rounding
ORDERS = [
    *((method, name) for method in (Euler, Midpoint, Heun, RK4, Bosh3) for name in PROBLEMS),
    *((Dopri5, name) for name in ("decay", "oscillator", "damped", "swing")),
    *((Tsit5, name) for name in ("decay", "swing")),
]
# more than Phi alone needs: the pair's next terms are larger
COUPLED_STEPS: dict[Any, list[int]] = {
    Euler: [64, 128, 256, 512, 1024],
    Midpoint: [256, 512, 1024],
    Heun: [256, 512, 1024],
    RK4: [64, 128, 256],
    Bosh3: [48, 96, 192, 384],
    Dopri5: [128, 160, 200],
    Tsit5: [48, 68, 96],
}


@pytest.mark.parametrize(("method", "name"), ORDERS)
@torch.no_grad()
def test_order_is_the_method_s(method: type[RungeKutta], name: str) -> None:
    problem, errors = PROBLEMS[name](), []
    for n in COUPLED_STEPS[method]:
        solver = Reversible(method(num_steps=n))  # pyright: ignore[reportCallIssue]
        solution = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
        errors.append(float((solution.y - problem.exact(problem.t1)).abs().max()))
    assert fitted_order(COUPLED_STEPS[method], errors) == pytest.approx(method.tableau.order, abs=0.2)


@pytest.mark.parametrize("growth", [-1.5, -0.5, 0.8])
@pytest.mark.parametrize(
    ("method", "steps", "coupling"),
    [
        *((Euler, 2_000, None), (Bosh3, 500, None)),
        # one coupling for all steps: with their number, the error of an odd order changes its sign
        *((Euler, 2_000, 0.99999), (Euler, 2_000, 0.999), (Euler, 2_000, 0.99), (Bosh3, 500, 0.99)),
        *((Midpoint, 1_000, None), (Midpoint, 1_000, 0.999), (RK4, 200, 0.999)),
    ],
)
@torch.no_grad()
def test_the_error_is_the_method_s_times_a_factor(
    method: type[RungeKutta], steps: int, coupling: float | None, growth: float
) -> None:
    """On y' = a y over [0, 1], as the docstring has it."""
    phi = method(num_steps=steps)  # pyright: ignore[reportCallIssue]
    problem = Problem(Decay(-growth), torch.ones(1, dtype=torch.float64))
    own, pair = (float(solver.solve(problem).y) - math.exp(growth) for solver in (phi, Reversible(phi, coupling)))
    damped = DAMPING if coupling is None else -steps * math.log(coupling)
    w = damped + 2 * growth
    q = (1 - math.exp(-w)) / w
    odd = 2 * q + 2 * growth * (1 - q) / w - 1
    assert pair / own == pytest.approx(odd if method.tableau.order % 2 else 1.0, abs=0.05)


@torch.no_grad()
def test_two_steps_are_those_of_the_paper() -> None:
    problem, c = swing(), 0.7
    h, t0, y0, phi = 0.25, problem.t0, problem.y0, Heun(num_steps=1).advance
    y1 = c * y0 + (1 - c) * y0 + phi(problem.field, t0, h, y0) - y0
    z1 = y0 - (phi(problem.field, t0 + h, -h, y1) - y1)
    y2 = c * y1 + (1 - c) * z1 + phi(problem.field, t0 + h, h, z1) - z1
    found = Reversible(Heun(num_steps=2), c).solve(Problem(problem.field, y0, t0, t0 + 2 * h)).y
    assert relative_error(found, y2) < 1e-14


@each_method
def test_evaluations_are_counted(method: RungeKutta) -> None:
    (field, y0), solver = mixer_problem(), Reversible(method)
    with count_calls(field) as calls:
        solution = ReversibleGradient().solve(solver, Problem(field, y0))
        forward = calls.count
        loss_of(solution.y).backward()
    steps, stages = solution.stats.accepted, len(method.tableau.c)
    assert solution.stats.evaluations == forward
    assert solution.stats.backward is not None
    assert solution.stats.backward.evaluations == calls.count - forward == (2 * steps - 1) * stages
    first = 1 if getattr(method, "first_step", None) == 0.5 else 2
    tried = (steps + solution.stats.rejected) * stages
    assert forward == (
        first + tried + (steps - 1) * (stages + 1) if method.controls_error else (2 * steps - 1) * stages
    )


@pytest.mark.parametrize("method", CONTROLLED, ids=repr)
@torch.no_grad()
def test_error_control(method: RungeKutta) -> None:
    problem = oscillator()  # no contraction, which lets the pair part
    solver = Reversible(method)
    tolerance = solver.rtol
    assert tolerance is not None
    solution = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1))
    assert relative_error(solution.y, problem.exact(problem.t1)) < 100 * tolerance
    back = solver.solve(Problem(problem.field, solution.y, problem.t1, problem.t0))
    assert relative_error(back.y, problem.y0) < 200 * tolerance
    assert solution.stats.next_step is not None
    enough = int(solution.stats.evaluations)
    assert solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1, max_nfe=enough)).stats.accepted
    with pytest.raises(SolverError, match=f"max_nfe = {enough - 1}"):
        solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1, max_nfe=enough - 1))
    loose = solver.with_tolerance(0.1, 0.1)
    assert isinstance(loose, Reversible)
    assert (loose.rtol, loose.coupling) == (0.1, solver.coupling)


def test_too_many_steps_are_refused_before() -> None:
    with pytest.raises(SolverError, match=r"needs 14 evaluations, more than max_nfe = 13"):
        Reversible(Midpoint(num_steps=4)).solve(Problem(Decay(1.0), torch.ones(2).double(), max_nfe=13))


@each_method
@torch.no_grad()
def test_dense_output_ends_where_the_solve_does(method: RungeKutta) -> None:
    problem, solver = swing(), Reversible(method, 0.9)
    times = [problem.t0, 0.9, 1.7, 2.2, problem.t1]
    states = solver.trajectory(Problem(problem.field, problem.y0), times)
    end = solver.solve(Problem(problem.field, problem.y0, problem.t0, problem.t1)).y
    assert torch.equal(states[0], problem.y0)
    assert relative_error(states[-1], end) < 1e-6  # a step from t0 + n h ends at t1 to rounding


@torch.no_grad()
def test_dense_output_has_the_method_s_order() -> None:
    problem, errors = swing(), []
    steps = [16, 24, 36, 54]
    for n in steps:
        h = (problem.t1 - problem.t0) / n
        times = [problem.t0, *(problem.t0 + (i + x) * h for i in range(n) for x in (0.25, 0.6)), problem.t1]
        states = Reversible(RK4(num_steps=n), 0.9).trajectory(Problem(problem.field, problem.y0), times)
        errors.append(float((states - torch.stack([problem.exact(t) for t in times])).abs().max()))
    assert fitted_order(steps, errors) >= 3.7


@pytest.mark.parametrize("method", [Midpoint, RK4, Dopri5])
@torch.no_grad()
def test_stability_limit_is_the_coupling_s(method: type[RungeKutta]) -> None:
    """On y' = -y it ends at h = -ln c: below it y decays, above it the pair parts."""
    y0, sizes, c, n = torch.ones(1, dtype=torch.float64), [], 0.9, 2_000
    for share in (0.9, 1.1):
        solver = Reversible(method(num_steps=n), c)  # pyright: ignore[reportCallIssue]
        end = -math.log(c) * share * n
        sizes.append(float(solver.solve(Problem(Decay(1.0), y0, 0.0, end, max_nfe=10**6)).y.abs()))
    assert sizes[0] < 1e-6 < sizes[1]


@pytest.mark.parametrize("coupling", [0.0, -0.5, 1.1, float("nan"), True, "0.9"])
def test_bad_coupling_is_refused(coupling: Any) -> None:
    with pytest.raises(ValueError, match=r"coupling must lie in \(0, 1\]"):
        Reversible(Midpoint(num_steps=2), coupling)


# --- the gradient


@pytest.mark.parametrize("coupling", [None, 0.9, 0.999, 1.0])
@each_method
def test_equals_backprop_through_the_same_steps(method: RungeKutta, coupling: float | None) -> None:
    solver = Reversible(method, coupling)
    cases: list[tuple[nn.Module, Tensor, float, float]] = [(*mixer_problem(), 0.0, 1.0)]
    cases += [(p.field, p.y0, p.t0, p.t1) for p in (make() for make in PROBLEMS.values())]
    for field, y0, t0, t1 in cases:
        plain, truth = gradients_of(Backprop(), solver, field, y0, t0, t1)
        for gradient in (ReversibleGradient(), Checkpoint(), Checkpoint(slots=2)):
            found, grads = gradients_of(gradient, solver, field, y0, t0, t1)
            assert torch.equal(found.y, plain.y)
            assert found.stats == plain.stats
            assert largest_difference(grads, truth) <= 1e-10


def test_checkpoint_takes_the_warm_steps_again() -> None:
    grads = []
    for gradient in (Backprop(), Checkpoint()):
        field, y0 = Decay(3.0), torch.tensor([[1.0, -2.0]], dtype=torch.float64, requires_grad=True)
        problem = Problem(field, y0, warm_step=0.7)
        solution = gradient.solve(Reversible(Dopri5(1e-3, 1e-3, first_step="warm")), problem)
        by_y0, by_rate = torch.autograd.grad(solution.y.sum(), (y0, field.rate))
        grads.append(torch.cat([by_y0.flatten(), by_rate.flatten()]))
    assert relative_error(grads[1], grads[0]) < 1e-13


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 100),
    coupling=st.none() | st.floats(0.9, 1.0),
    method=st.sampled_from([Euler, Midpoint, Heun, RK4]),
    scale=st.floats(0.1, 3.0),
)
def test_equals_backprop_for_any_steps_and_coupling(
    steps: int, coupling: float | None, method: Any, scale: float
) -> None:
    field, y0 = mixer_problem()
    solver = Reversible(method(num_steps=steps), coupling)
    truth = gradients_of(Backprop(), solver, field, scale * y0)[1]
    found, grads = gradients_of(ReversibleGradient(), solver, field, scale * y0)
    assert largest_difference(grads, truth) <= 1e-9
    assert found.stats.backward is not None
    assert found.stats.backward.y0_error <= 1e-9


def test_gradient_equals_finite_differences() -> None:
    field, y0 = mixer_problem()

    def solve(y0: Tensor, *params: Tensor) -> Tensor:
        return ReversibleGradient().solve(Reversible(Heun(num_steps=3), 0.8), Problem(field, y0)).y

    assert torch.autograd.gradcheck(solve, (y0.requires_grad_(), *field.parameters()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("steps", "lost"), [(64, 1e-5), (1_000, 1e-4)])
def test_many_steps_in_single_precision(steps: int, lost: float) -> None:
    """Undoing them multiplies rounding by exp(2), whatever their number."""
    field, y0 = conv_problem(batch=1, size=6)
    solver = Reversible(Euler(num_steps=steps))
    double = ConvField(6).double()
    double.load_state_dict(field.state_dict())
    truth = gradients_of(Backprop(), solver, double, y0.double())[1]
    found, grads = gradients_of(ReversibleGradient(), solver, field, y0)
    one, other = (torch.cat([g.double().flatten() for g in each]) for each in (grads, truth))
    assert float((one - other).norm() / other.norm()) < lost
    assert found.stats.backward is not None
    assert 0 < found.stats.backward.y0_error < lost


def test_a_coupling_that_loses_the_start_is_refused() -> None:
    """0.99 for each of 1,000 steps multiplies rounding by 23,000."""
    field, y0 = conv_problem(batch=1, size=6)
    solution = ReversibleGradient().solve(Reversible(Euler(num_steps=1_000), 0.99), Problem(field, y0))
    with pytest.raises(GradientError, match="a coupling nearer to 1"):
        solution.y.sum().backward()


def test_memory_does_not_grow_with_the_steps() -> None:
    field, y0 = conv_problem(batch=2, size=13)
    y0.requires_grad_()
    held, peak = [], []
    for steps in (2, 64):
        solver = Reversible(Midpoint(num_steps=steps))
        kept, _ = saved_bytes(lambda solver=solver: ReversibleGradient().solve(solver, Problem(field, y0)), field)
        held.append(kept)
        with LiveBytes() as live:
            ReversibleGradient().solve(solver, Problem(field, y0)).y.sum().backward()
        peak.append(live.peak)
    assert held == [2 * y0.nbytes, 2 * y0.nbytes]
    assert peak[1] <= 1.05 * peak[0]


@pytest.mark.skipif(library() is None, reason="no kernel here")
@pytest.mark.parametrize("method", [Midpoint(num_steps=3), Dopri5(1e-3, 1e-3), Bosh3(1e-3, 1e-3, 0.2)], ids=repr)
def test_the_kernel_takes_whole_steps_of_it(method: RungeKutta, monkeypatch: pytest.MonkeyPatch) -> None:
    field, y0 = conv_problem(batch=2)
    taken: list[str] = []
    step, once = ConvField.runge_kutta_step, ConvField.forward
    monkeypatch.setattr(ConvField, "runge_kutta_step", lambda *args: taken.append("step") or step(*args))
    monkeypatch.setattr(ConvField, "forward", lambda *args: taken.append("once") or once(*args))
    solution, grads = gradients_of(ReversibleGradient(), Reversible(method), field, y0)
    steps = solution.stats.accepted
    assert taken.count("step") == 2 * (2 * steps - 1) + solution.stats.rejected
    # f(t, z) at the start of each step, which all attempts share, and one for the guess at the first
    guess = 0 if getattr(method, "first_step", None) == 0.2 else 1
    assert taken.count("once") == (steps + guess if method.controls_error else 0)
    monkeypatch.undo()
    double = ConvField(6).double()
    double.load_state_dict(field.state_dict())
    truth = gradients_of(Backprop(), Reversible(method), double, y0.double())[1]
    one, other = (torch.cat([g.double().flatten() for g in each]) for each in (grads, truth))
    assert float((one - other).norm() / other.norm()) < 1e-3


# --- what it refuses


@pytest.mark.parametrize(
    "solver", [Midpoint(num_steps=2), Dopri5(), TorchDiffEq("dopri5")], ids=lambda solver: type(solver).__name__
)
def test_another_solver_is_refused_by_name_where_a_gradient_is_wanted(solver: Solver) -> None:
    field, y0 = mixer_problem()
    with pytest.raises(GradientError, match=rf"{type(solver).__name__}\(.*use the solver Reversible"):
        ReversibleGradient().solve(solver, Problem(field, y0))
    with torch.no_grad():
        found = ReversibleGradient().solve(solver, Problem(field, y0)).y
        assert torch.equal(found, solver.solve(Problem(field, y0)).y)


def test_noise_is_the_forward_pass_s() -> None:
    solver = Reversible(Midpoint(num_steps=3))
    results = [
        [*grads_of(made(Noisy, solver, gradient), start()), torch.rand(3)]
        for gradient in (Backprop(), ReversibleGradient(), Checkpoint())
    ]
    for other in results[1:]:
        for one, found in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, found, rtol=1e-4, atol=1e-6)
    with pytest.raises(FieldError, match=r"Noisy draws random numbers \(dropout\?\)"):
        made(Noisy, Reversible(Bosh3(0.1, 0.1, first_step=0.5)), ReversibleGradient())(start())


def test_a_generator_of_the_field_s_own_is_noticed() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y * torch.rand(y.shape, generator=self.generator)

    y1 = made(Own, TWO, ReversibleGradient())(start())
    with pytest.raises(GradientError, match=r"relative error of .* Own contracts .* or it gives other values"):
        y1.sum().backward()


def test_a_flow_that_contracts_too_strongly_is_refused() -> None:
    y0 = torch.ones(3, requires_grad=True)
    wide = torch.linspace(0.5, 1.0, 3)
    solution = ReversibleGradient().solve(Reversible(RK4(num_steps=40)), Problem(lambda t, y: -40 * wide * y, y0))
    with pytest.raises(GradientError, match=r"cannot be trusted.*Checkpoint with the solver RK4\(num_steps=40\)"):
        solution.y.sum().backward()


def test_running_statistics_and_written_buffers() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1  # pyright: ignore
            return self.weight * y / self.calls.item()  # pyright: ignore

    for make in (Normed, Counting):
        truth, block = made(make, TWO, Backprop()), made(make, TWO, ReversibleGradient())
        for one, other in zip(grads_of(truth, start()), grads_of(block, start()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        for name, buffer in truth.named_buffers():
            assert torch.equal(buffer, dict(block.named_buffers())[name]), name


@pytest.mark.parametrize("make", [Hidden, Late])
@pytest.mark.parametrize("wants_start", [True, False])
def test_a_tensor_without_a_gradient_is_named(make: Any, wants_start: bool) -> None:
    block = made(make, Reversible(Midpoint(num_steps=4)), ReversibleGradient())
    with pytest.raises(UnknownTensorError, match=r"uses a tensor .*nn\.ModuleList.*Backprop"):
        block(start().requires_grad_(wants_start)).sum().backward()


def test_other_guards_hold() -> None:
    with pytest.raises(FieldError, match="Rectified changes its input y in place"):
        made(Rectified, TWO, ReversibleGradient())(start())
    block = made(Generated, TWO, ReversibleGradient())
    block.field.generate()  # pyright: ignore[reportCallIssue]
    with pytest.raises(GradientError, match="compute it within the field, or use Backprop"):
        grads_of(block, start())
    block = made(Parametrized, TWO, ReversibleGradient())
    with nn.utils.parametrize.cached(), pytest.raises(GradientError, match=r"leave cached\(\) out"):
        block(start())
    block = made(lambda: ConvField(6), TWO, ReversibleGradient())
    with pytest.raises(GradientError, match=r"Reversible .* use Backprop"):
        vmap(lambda y: block(y[None]))(start().detach())
    with pytest.raises(GradientError, match=r"create_graph=True.*Backprop"):
        torch.autograd.grad(block(start()).sum(), block.field.conv.weight, create_graph=True)  # pyright: ignore
    loss = block(start()).sum()
    with torch.no_grad():
        block.field.conv.weight.mul_(2.0)  # pyright: ignore
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_may_be_given_moved_and_recomputed() -> None:
    block = made(lambda: ConvField(6), TWO, ReversibleGradient())
    truth = grads_of(block, start())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x):
        moved = grads_of(block, start())
    y0 = start()
    block.zero_grad()
    torch.utils.checkpoint.checkpoint(block, y0, use_reentrant=False).square().mean().backward()  # pyright: ignore
    again = [y0.grad, *(p.grad for p in block.parameters())]
    given = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    other = made(lambda: ConvField(6), TWO, ReversibleGradient())
    with torch.no_grad():
        other.field.conv.weight.zero_()  # pyright: ignore
    loss = functional_call(other, given, (start(),)).square().mean()
    replaced = [truth[0], *torch.autograd.grad(loss, tuple(given.values()))]
    for found in (moved, again, replaced):
        for one, right in zip(found, truth, strict=True):
            torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-8)


def test_later_layers_empty_solves_and_no_grad() -> None:
    net = nn.Sequential(made(lambda: ConvField(6), TWO, ReversibleGradient()), nn.ReLU(inplace=True))
    plain = nn.Sequential(made(lambda: ConvField(6), TWO, Backprop()), nn.ReLU())
    found, truth = start(), start()
    net(found).square().mean().backward()
    plain(truth).square().mean().backward()
    torch.testing.assert_close(found.grad, truth.grad, rtol=1e-5, atol=1e-8)
    y0 = start()
    ReversibleGradient().solve(TWO, Problem(net[0].field, y0, 0.5, 0.5)).y.sum().backward()  # pyright: ignore
    assert y0.grad is not None
    assert bool((y0.grad == 1).all())
    with torch.no_grad():
        assert torch.equal(net[0](start()), plain[0](start()))
        assert torch.equal(net[0].trajectory(start())[-1], net[0](start()))  # pyright: ignore


def test_autocast_and_the_adjoint_take_it() -> None:
    torch.manual_seed(0)
    field = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh())
    block = ODEBlock(Fixed(field), Reversible(Midpoint(num_steps=4)), ReversibleGradient())
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y1 = block(start())
        assert y1.dtype == torch.float32
        block.zero_grad()
        y1.square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None]))
    assert 0 < relative_error(grads[1], grads[0]) < 0.05
    field, y0 = mixer_problem()
    truth = gradients_of(Backprop(), RK4(num_steps=20), field, y0)[1]
    assert largest_difference(gradients_of(Adjoint(), Reversible(RK4(num_steps=20)), field, y0)[1], truth) < 1e-4


class Fixed(nn.Module):
    """The same network at all times."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)
