"""What studies measure with: memory, pairs, intervals, and the same step in JAX."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from odenet_lightning.gradients import Adjoint
from odenet_lightning.models import Classifier, ODENet, PyramidODENet
from odenet_lightning.solvers import Dopri5, Midpoint
from odenet_lightning.studies import recipes
from odenet_lightning.studies import steps as steps_study
from odenet_lightning.studies.cost import TOLERANCES, Cost
from odenet_lightning.studies.flow import separation
from odenet_lightning.studies.gradients import GRADIENTS, Gradients
from odenet_lightning.studies.in_jax import jitted_step
from odenet_lightning.studies.intervals import half_width
from odenet_lightning.studies.memory import HeldBytes, LiveBytes
from odenet_lightning.studies.pairs import summary
from odenet_lightning.studies.recipes import Recipes
from odenet_lightning.studies.solvers import Solvers
from odenet_lightning.studies.steps import Steps
from odenet_lightning.studies.study import Row, number
from tests.tiny_studies import run_here


def test_cost_compares_seed_by_seed() -> None:
    def row(name: str, strength: float | None, seed: int, evaluations: float, accuracy: float) -> Row:
        values = {"evaluations": evaluations, "accuracy": accuracy}
        measured = {f"{key}_{tolerance:g}": value for tolerance in TOLERANCES for key, value in values.items()}
        return {"regularizer": name, "strength": strength, "seed": seed, "seconds": 1.0, **measured}

    rows = [row("none", None, seed, 20.0 + 20 * seed, 0.5 + 0.1 * seed) for seed in range(3)]
    rows += [row("Kinetic", 0.1, seed, 15.0 + 15 * seed, 0.51 + 0.1 * seed) for seed in range(3)]
    none, kinetic = Cost().table(rows)
    assert (none["saved"], none["points"], none["accuracy"]) == (None, None, "60.00 %")
    assert (kinetic["saved"], kinetic["points"], kinetic["n"]) == ("+25.00 ± 0.00", "+1.00 ± 0.00", 3)


def test_recipes_retests_under_an_accurate_solver(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[str] = []

    def accuracy(study: Recipes, net: Classifier) -> float:
        tested.extend(repr(block.solver) for block in net.ode_blocks)
        return len(tested) / 10

    monkeypatch.setattr(recipes, "run_command", run_here)
    monkeypatch.setattr(Recipes, "_accuracy", accuracy)
    study = Recipes(root=str(sample_root), source="sample", configs=["built-in"], epochs=1)
    row = study.measure(study.cases()[0])
    assert tested == [repr(Midpoint(num_steps=5)), repr(Dopri5(1e-3, 1e-3))]
    assert (row["accuracy"], row["retest"]) == (0.1, 0.2)


def test_a_gradient_that_cannot_be_computed_is_an_empty_row(
    monkeypatch: pytest.MonkeyPatch, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Gradients(root=str(sample_root), source="sample", batch_size=2, repeats=1, tolerances=[0.1], depths=[1])
    monkeypatch.setitem(GRADIENTS, "Adjoint", Adjoint(1e-12, 1e-12))
    cases = [case for case in study.cases() if case["rtol"] and case["gradient"] in ("Backprop", "Adjoint")]
    rows = [{**case, **study.measure(case)} for case in cases]
    failed = next(row for row in rows if (row["gradient"], row["rtol"]) == ("Adjoint", 0.1))
    assert (failed["n"], failed["seconds"], failed["relative_error"]) == (0, None, None)
    assert "max_steps = 1000 steps were not enough" in capsys.readouterr().out
    assert all(row["n"] == 1 for row in rows if row is not failed)
    study.draw(rows)


def test_the_share_of_the_machine(monkeypatch: pytest.MonkeyPatch, sample_root: Path) -> None:
    """An evaluation of 2 images: 3 convolutions of 6 x 6 channels, 3 x 3 taps and 26 x 26 pixels each."""
    monkeypatch.setattr(steps_study, "peak", lambda: 1e9)
    monkeypatch.setattr(Steps, "ways", lambda *_: (lambda: 2.0, lambda: 4.0))
    study = Steps(root=str(sample_root), source="sample", repeats=1)
    row = study.measure({"a": steps_study.FIELD, "b": steps_study.FIELD_OPERATORS, "batch": 2, "rtol": 0.1})
    assert row["share"] == pytest.approx(2 * 3 * 6 * 6 * 9 * 26 * 26 / 2e-3 / 1e9)


def test_jax_takes_the_same_step() -> None:
    """SGD with momentum from the same weights, both solved to rounding."""
    pytest.importorskip("diffrax")
    torch.manual_seed(0)
    net, images, labels = ODENet(solver=Dopri5(1e-6, 1e-6)), torch.rand(4, 1, 28, 28) * 2 - 1, torch.arange(4)
    step = jitted_step(net, images, labels, 1e-6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        params = step()
    for name, weight in net.named_parameters():
        found = torch.tensor(params[name].tolist())  # pyright: ignore[reportPossiblyUnboundVariable]
        torch.testing.assert_close(found, weight.detach(), rtol=0, atol=2e-5)


def test_pairs_give_quartiles_of_many_and_extremes_of_few() -> None:
    few = summary([(1.0, 2.0), (3.0, 3.0), (2.0, 8.0)])
    assert (few["a_ms"], few["b_ms"], few["ratio"], few["low"], few["high"], few["n"]) == (2.0, 3.0, 0.5, 0.25, 1.0, 3)
    many = summary([(float(ratio), 1.0) for ratio in range(1, 8)])
    assert (many["ratio"], many["low"], many["high"], many["n"]) == (4.0, 2.0, 6.0, 7)


def test_errors_of_two_blocks_do_not_depend_on_the_order_of_solvers(sample_root: Path) -> None:
    def error(names: list[tuple[str, int]]) -> float:
        study = Solvers(root=str(sample_root), source="sample", images_used=4)
        torch.manual_seed(0)
        study.networks["checkpoint"] = PyramidODENet(hidden=2, channels=(2, 3)).eval()
        cases = [{"network": "checkpoint", "solver": name, "num_steps": n, "rtol": None} for name, n in names]
        return [number(study.measure({**case}), "relative_error") for case in cases][-1]

    alone = error([("RK4", 16)])
    assert alone < 0.02
    assert error([("Euler", 1), ("RK4", 16)]) == alone


def test_held_bytes_of_a_known_graph() -> None:
    net = ODENet(channels=2, solver=Dopri5())
    x = torch.rand(8, 8)  # 256 bytes
    weight = nn.Parameter(torch.rand(8, 8))
    with HeldBytes(net) as held:
        y = (x @ weight).sin()  # x for the product, x @ weight for the sine
        assert held.now == held.peak == 2 * 256
        z = y * y  # y, once
        assert held.now == 3 * 256
        z.sum().backward()
    assert held.now == 0
    assert held.peak == 3 * 256


def test_live_bytes_of_a_known_calculation() -> None:
    x = torch.rand(8, 8)  # 256 bytes, made before
    with LiveBytes() as live:
        y = x @ x
        z = y.view(64) + 1
        y.mul_(2)
        assert live.now == live.peak == 2 * 256
        del y
        assert live.now == 256
        z = z.exp().sum()
        assert live.now == 4
    assert live.peak == 2 * 256 + 4  # z, its exponential and the sum


def test_live_bytes_see_the_way_back() -> None:
    weight = nn.Parameter(torch.rand(8, 8))
    with LiveBytes() as live:
        loss = (weight @ weight).square().sum()
        before = live.now  # the product, kept for its square, and the sum
        assert before == 256 + 4
        loss.backward()
    assert live.now == 256 + 4  # the weight's derivative instead
    assert live.peak >= 3 * 256


def test_separation_and_interval_have_their_closed_forms() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    y = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]])
    assert separation(y, labels) == pytest.approx(4.0)  # centres 2 from the middle, samples 1 from their centre
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
