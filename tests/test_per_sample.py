"""Each image solved by itself: its answer and its cost are those that it has alone."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from odenet_lightning.block import ODEBlock, recorded_solves
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.models import ODENet
from odenet_lightning.solvers import (
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    FieldError,
    Midpoint,
    Problem,
    SolverError,
    TorchDiffEq,
    Tsit5,
)
from odenet_lightning.solvers import per_sample as module
from odenet_lightning.solvers.problem import unchanged
from tests.problems import relative_error

ADAPTIVE: list[type[AdaptiveRungeKutta]] = [Bosh3, Dopri5, Tsit5]


class Spin(nn.Module):
    """dy/dt = rate cos(t) (-y_2, y_1) - decay y, for images `[B, 2, n]`; the larger the image, the faster it turns."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.decay = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        size = y.square().mean((1, 2), keepdim=True)
        turned = torch.stack([-y[:, 1], y[:, 0]], 1)
        return self.rate * torch.cos(3 * t) * (0.3 + size) * turned - self.decay * y


def states(count: int = 8, seed: int = 0) -> Tensor:
    """Of sizes from 0.2 to 2, so that the fastest image needs many times the steps of the slowest."""
    y = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return y / y.square().mean((1, 2), keepdim=True).sqrt() * torch.logspace(-0.7, 0.3, count)[:, None, None].double()


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3])
@pytest.mark.parametrize("first_step", ["heuristic", "warm"])
@torch.no_grad()
def test_logits_of_an_image_do_not_depend_on_the_others(tolerance: float, first_step: Any) -> None:
    torch.manual_seed(0)
    solver = Dopri5(tolerance, tolerance, first_step=first_step, per_sample=True)
    net = ODENet(channels=2, solver=solver).double().eval()
    net.block.warm_step = 0.3
    images = torch.rand(100, 1, 28, 28, dtype=torch.float64) * torch.logspace(-1, 1, 100)[:, None, None, None]
    with recorded_solves(net) as solves:
        together = net(images)
        places = range(0, 100, 33)
        alone = torch.cat([net(images[place : place + 1]) for place in places])
    assert float((together[list(places)] - alone).abs().max()) <= 1e-12
    assert solves[0].images is not None
    assert solves[0].images.evaluations[list(places)].tolist() == [solve.evaluations for solve in solves[1:]]


@pytest.mark.parametrize("first_step", [0.1, 2.0, "warm"])
@pytest.mark.parametrize("method", ADAPTIVE)
@torch.no_grad()
def test_each_image_takes_the_steps_that_it_takes_alone(method: type[AdaptiveRungeKutta], first_step: Any) -> None:
    """Against the solve of one step size for all, of batches of one image."""
    y0, field, sizes = states(), Spin(), {"rtol": 1e-5, "atol": 1e-6, "first_step": first_step}
    for t0, t1 in ((0.0, 1.5), (0.7, -0.4)):
        solution = method(**sizes, per_sample=True).solve(Problem(field, y0, t0, t1, warm_step=0.4))
        alone = [method(**sizes).solve(Problem(field, y[None], t0, t1, warm_step=0.4)) for y in y0]
        torch.testing.assert_close(solution.y, torch.cat([each.y for each in alone]), rtol=1e-9, atol=1e-9)
        found = solution.stats.images
        assert found is not None
        for name in ("evaluations", "accepted", "rejected"):
            expected = [getattr(each.stats, name) for each in alone]
            assert getattr(found, name).tolist() == expected
            assert getattr(solution.stats, name) == pytest.approx(sum(expected) / len(expected))
        assert solution.stats.smallest_step == pytest.approx(min(each.stats.smallest_step for each in alone))
        assert solution.stats.last_step == pytest.approx(sum(each.stats.last_step for each in alone) / len(alone))
        steps = sorted(each.stats.next_step or 0.0 for each in alone)
        assert solution.stats.next_step == pytest.approx(steps[(len(steps) - 1) // 2]), "their median"
        assert len({*found.evaluations.tolist()}) > 1, "or one step size for all would do as well"


@settings(deadline=None, max_examples=25, derandomize=True, database=None)
@given(
    method=st.sampled_from(ADAPTIVE),
    exponent=st.floats(-5, -1),
    first_step=st.sampled_from(["heuristic", "warm", 0.01, 0.7, 50.0]),
    span=st.floats(0.1, 2) | st.floats(-1, -0.1),
    count=st.integers(1, 6),
)
@torch.no_grad()
def test_cost_is_what_was_evaluated(
    method: type[AdaptiveRungeKutta], exponent: float, first_step: Any, span: float, count: int
) -> None:
    y0, field, rows = states(count), Spin(), 0
    solver = method(10**exponent, 10**exponent, first_step=first_step, per_sample=True)
    problem = Problem(field, y0, 0.2, 0.2 + span, record=unchanged)
    solution, _ = (solver.solve(problem) for _ in range(2))  # the first two of a field look at it more closely

    def add(module: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        nonlocal rows
        rows += len(args[1])

    with field.register_forward_pre_hook(add):
        again = solver.solve(problem)
    assert torch.equal(again.y, solution.y)
    each = solution.stats.images
    assert each is not None
    assert rows == int(each.evaluations.sum()), "images that are done leave the batch"
    taken = torch.zeros(count, dtype=torch.long)
    for step in solution.steps:
        taken[torch.arange(count) if step.images is None else step.images] += 1
    assert torch.equal(taken, each.accepted)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@torch.no_grad()
def test_evaluations_of_an_image_against_scipy(tolerance: float) -> None:
    y0, field = states(), Spin()
    stats = Dopri5(tolerance, tolerance, per_sample=True).solve(Problem(field, y0, 0.0, 1.5)).stats
    assert stats.images is not None

    for image, evaluations in zip(y0, stats.images.evaluations.tolist(), strict=True):

        def slope(t: float, y: Any, image: Tensor = image) -> Any:
            state = torch.from_numpy(y).view(1, *image.shape)
            return field(torch.tensor(t, dtype=torch.float64), state).detach().numpy().ravel()

        reference = solve_ivp(slope, (0.0, 1.5), image.numpy().ravel(), "RK45", rtol=tolerance, atol=tolerance)
        assert evaluations <= 1.3 * reference.nfev


@torch.no_grad()
def test_one_synchronisation_an_attempted_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values leave the device by `host_values` alone; on the CPU nothing else shows it."""
    waits, honest = 0, module.host_values

    def counted(x: Tensor) -> Tensor:
        nonlocal waits
        waits += 1
        return honest(x)

    monkeypatch.setattr(module, "host_values", counted)
    each = Dopri5(1e-5, 1e-5, first_step=0.5, per_sample=True).solve(Problem(Spin(), states(), 0.0, 1.5)).stats.images
    assert each is not None
    assert each.rejected.any()
    assert waits == int((each.accepted + each.rejected).max())


@torch.no_grad()
def test_trajectory_is_that_of_each_image() -> None:
    solver, field, y0, times = Dopri5(1e-6, 1e-6, per_sample=True), Spin(), states(), [0.0, 0.11, 0.7, 1.2]
    together = solver.trajectory(Problem(field, y0), times)
    alone = torch.cat([solver.trajectory(Problem(field, y[None]), times) for y in y0], 1)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    truth = torch.stack([Dopri5(1e-11, 1e-11).solve(Problem(field, y0, 0.0, time)).y for time in times])
    assert relative_error(together, truth) < 1e-4


# --- gradients


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


# --- what is refused


class Whole(nn.Module):
    """Fields that cannot be evaluated for each image by itself, each in its own way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm = way, nn.BatchNorm1d(2).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.way == "number":
            return -y * float(t)
        if self.way == "branch":
            return -y if t > 0.5 else y
        if self.way == "shape":
            return -y * t.view(1)
        if self.way == "mean time":
            return -y * t.mean()
        return self.norm(y) if self.way == "batch norm" else -y * (1 + y.mean())


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("way", ["number", "branch", "shape", "mean time", "batch norm", "mean state"])
def test_a_field_that_mixes_images_is_refused_by_name(way: str, count: int) -> None:
    problem = Problem(Whole(way), states(count))
    for _ in range(2):
        with pytest.raises(FieldError, match=r"Whole cannot be evaluated for each image at its own time.*broadcast"):
            Dopri5(per_sample=True).solve(problem)
    if way not in ("batch norm",) or count > 1:
        Midpoint(num_steps=2).solve(problem)  # others may take it


def test_a_field_that_starts_as_zero_is_looked_at_again() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.gain * (y - y.mean(0))

    field, solver = Centred(), Dopri5(per_sample=True)
    problem = Problem(field, torch.tensor([[1.0], [2.0], [4.0]]))
    assert torch.equal(solver.solve(problem).y, problem.y0)
    nn.init.ones_(field.gain)
    with pytest.raises(FieldError, match="Centred cannot be evaluated for each image"):
        solver.solve(problem)


def test_a_part_that_starts_to_mix_images_in_training_is_found() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -y + self.gain * y.mean(0)

    field, solver = Drawn(), Dopri5(per_sample=True)
    problem = Problem(field, torch.tensor([[1.0], [2.0], [4.0]]))
    for gain in (0, 0, 0, 0, 0, 1, 1):  # the eighth solve is looked at again
        nn.init.constant_(field.gain, gain)
        solver.solve(problem)
    with pytest.raises(FieldError, match="Drawn cannot be evaluated for each image"):
        solver.solve(problem)


class Slotted:
    __slots__ = ()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


@dataclass
class Rate:
    rate: float = 1.0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


@pytest.mark.parametrize("field", [Slotted(), Rate()], ids=["without weak references", "not hashable"])
def test_any_object_may_be_a_field(field: Any) -> None:
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    assert relative_error(Dopri5(1e-6, 1e-6, per_sample=True).solve(Problem(field, y0)).y, y0 / math.e) < 1e-5


def test_batch_norm_is_taken_in_evaluation_only() -> None:
    field, y0 = Whole("batch norm").eval(), states()
    Dopri5(per_sample=True).solve(Problem(field, y0))
    with pytest.raises(FieldError, match="BatchNorm"):
        Dopri5(per_sample=True).solve(Problem(field.train(), y0))


@pytest.mark.parametrize(
    ("field", "options", "limit", "why"),
    [
        (lambda t, y: torch.where(y > 1, y * torch.nan, y), {}, 10_000, "image 2 .*NaN or infinite"),
        (lambda t, y: torch.where(y > 1, y * torch.nan, y), {"first_step": 0.1}, 10_000, "image 2 .*NaN or infinite"),
        (lambda t, y: 3 * y * y, {}, 10_000, "image [12] .*(too small|NaN or infinite|max_steps)"),
        (lambda t, y: torch.cos(99 * t) * y, {"max_steps": 3}, 10_000, "max_steps = 3 .* a larger max_steps"),
        (lambda t, y: torch.cos(99 * t) * y, {}, 30, "max_nfe = 30 .* a larger max_nfe"),
    ],
    ids=["nan", "nan later", "blow-up", "max_steps", "max_nfe"],
)
def test_solver_error_names_the_image(field: Any, options: Any, limit: int, why: str) -> None:
    y0 = torch.tensor([[0.1], [0.9], [1.5]], dtype=torch.float64)
    with pytest.raises(SolverError) as error:
        Dopri5(1e-6, 1e-6, per_sample=True, **options).solve(Problem(field, y0, max_nfe=limit))
    assert re.search(why, str(error.value)), error.value


def test_vmap_is_refused() -> None:
    block = ODEBlock(Spin(), Dopri5(first_step=0.3, per_sample=True), Backprop())
    for _ in range(4):  # solves at which the field is looked at, and one at which it is not
        with pytest.raises(FieldError, match=r"torch\.func"):
            torch.vmap(lambda y: block(y[None])[0])(states())


def test_by_sample_changes_only_what_couples_images() -> None:
    for solver in (Midpoint(num_steps=2), Dopri5(num_steps=2), Dopri5(per_sample=True), TorchDiffEq("dopri5")):
        assert solver.by_sample() is solver
    assert Dopri5(1e-2, 1e-5).by_sample() == Dopri5(1e-2, 1e-5, per_sample=True)
    assert [solver.couples_images for solver in (Dopri5(), Dopri5().by_sample(), TorchDiffEq("dopri5"))] == [
        True,
        False,
        True,
    ]


def test_a_state_without_axes_is_one_image() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y

    y0 = torch.tensor(1.5, dtype=torch.float64)
    assert torch.equal(Dopri5(per_sample=True).solve(Problem(field, y0)).y, Dopri5().solve(Problem(field, y0)).y)
