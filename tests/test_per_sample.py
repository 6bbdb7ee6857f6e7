"""Each image solved by itself: its answer and its cost are those that it has alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from odenet_lightning.block import recorded_solves
from odenet_lightning.models import ODENet
from odenet_lightning.solvers import (
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Midpoint,
    Problem,
    TorchDiffEq,
    Tsit5,
)
from odenet_lightning.solvers import per_sample as module
from odenet_lightning.solvers.problem import unchanged
from tests.problems import relative_error
from tests.spin import Spin, states

ADAPTIVE: list[type[AdaptiveRungeKutta]] = [Bosh3, Dopri5, Tsit5]


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
