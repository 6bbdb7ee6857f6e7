"""The numbers that studies measure, each in a tiny run."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from odenet_lightning.studies import STUDIES, loop, phases, recipes, run, training
from odenet_lightning.studies.dynamics import Dynamics
from odenet_lightning.studies.study import Row, number
from tests.tiny_studies import PROVENANCE, run_here

TINY: dict[str, dict[str, Any]] = {
    "gradients": {"tolerances": [1e-1, 1e-3], "depths": [1, 4], "batch_size": 4, "repeats": 1},
    "solvers": {"steps": [1, 2, 4], "tolerances": [1e-2, 1e-4], "epochs": 1, "images_used": 20},
    "depth": {"seeds": 1, "epochs": 1, "batch_size": 500},
    "dynamics": {"seeds": 1, "epochs": 1, "batch_size": 500},
    "cost": {"seeds": 1, "steps": 1, "batch_size": 4, "images_used": 20},
    "paper": {"channels": 2, "points": 2, "steps": 3, "batch_size": 16, "repeats": 1, "tolerances": [1e-2, 1e-4]},
    "flow": {"frames": 5, "epochs": 1, "images_used": 100},
    "digits": {"images_used": 40, "epochs": 1, "tolerance": 1e-3},
    "recipes": {"configs": ["built-in"], "seeds": 1, "epochs": 1},
    "phases": {"runs": 1, "epochs": 1},
    "steps": {"batch_sizes": [2], "repeats": 1},
    "loop": {"batch_size": 8, "steps": 21, "repeats": 1},
    "evaluate": {"repeats": 1},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, sample_root: Path) -> dict[str, list[Row]]:
    """Every study, as small as it gets: of each epoch five batches."""
    folder = tmp_path_factory.mktemp("studies")

    def trainer_for(device: str, **options: Any) -> Trainer:
        return whole(device, **{**options, "limit_train_batches": options.get("limit_train_batches") or 5})

    whole = training.trainer_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "trainer_for", trainer_for)
        patch.setattr(loop, "run_command", run_here)
        patch.setattr(recipes, "run_command", run_here)
        patch.setattr(phases, "run_command", run_here)
        return {
            name: run(kind(root=str(sample_root), source="sample", **TINY[name]), folder / name)
            for name, kind in STUDIES.items()
        }


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_row_is_complete(measured: dict[str, list[Row]], name: str, sample_root: Path) -> None:
    rows = measured[name]
    cases = STUDIES[name](root=str(sample_root), source="sample", **TINY[name]).cases()
    assert len(rows) == len(cases)
    keys = list(rows[0])
    assert set(keys) >= PROVENANCE | {"n"}
    for case, row in zip(cases, rows, strict=True):
        assert {key: row[key] for key in case} == case
        assert all(not isinstance(value, float) or math.isfinite(value) for value in row.values()), row
        assert isinstance(row["n"], int)
        assert row["n"] >= 1


def test_gradients_of_exact_methods_agree_and_memory_is_ordered(measured: dict[str, list[Row]]) -> None:
    by_case = {(row["gradient"], row["rtol"], row["num_steps"]): row for row in measured["gradients"]}

    def value(gradient: str, rtol: float | None, steps: int | None, key: str) -> float:
        return number(by_case[gradient, rtol, steps], key)

    for rtol, steps in ((1e-1, None), (1e-3, None), (None, 1), (None, 4)):
        exact, again = (value(name, rtol, steps, "relative_error") for name in ("Backprop", "Checkpoint"))
        assert exact == pytest.approx(again, rel=1e-3)
        assert value("Checkpoint", rtol, steps, "nfe_backward") <= value("Checkpoint", rtol, steps, "nfe_forward")
        assert value("Backprop", rtol, steps, "nfe_backward") == 0
        assert exact == pytest.approx(value("Checkpoint, 4 slots", rtol, steps, "relative_error"), rel=1e-3)
        assert value("Reversible", rtol, steps, "nfe_backward") <= value("Reversible", rtol, steps, "nfe_forward")
    for name in ("Backprop", "Checkpoint", "Adjoint", "Adjoint, seminorm"):
        assert value(name, 1e-3, None, "relative_error") < value(name, 1e-1, None, "relative_error")
        assert value(name, None, 4, "relative_error") < value(name, None, 1, "relative_error")
    assert value("Backprop", None, 4, "held_bytes") > 2 * value("Backprop", None, 1, "held_bytes")
    for name in ("Adjoint", "Checkpoint, 4 slots", "Reversible"):
        assert value(name, None, 4, "held_bytes") <= 1.6 * value(name, None, 1, "held_bytes")
    assert value("Adjoint", None, 4, "held_bytes") == value("Adjoint", None, 1, "held_bytes")
    assert value("Backprop", None, 4, "peak_bytes") > 2 * value("Backprop", None, 1, "peak_bytes")
    assert value("Adjoint", None, 4, "peak_bytes") < 1.5 * value("Adjoint", None, 1, "peak_bytes")
    assert all(number(row, "peak_bytes") > number(row, "held_bytes") for row in measured["gradients"])
    assert (
        value("Adjoint", None, 4, "held_bytes")
        < value("Checkpoint", None, 4, "held_bytes")
        < value("Backprop", None, 4, "held_bytes")
    )


def test_solvers_errors_fall_at_their_orders(measured: dict[str, list[Row]]) -> None:
    rows = measured["solvers"]
    for network in {row["network"] for row in rows}:
        for solver, order, stages in (("Euler", 1, 1), ("Midpoint", 2, 2), ("Heun", 2, 2), ("RK4", 4, 4)):
            mine = [row for row in rows if (row["network"], row["solver"]) == (network, solver)]
            assert [row["evaluations"] for row in mine] == [stages * steps for steps in (1, 2, 4)]
            coarse, fine = (number(row, "relative_error") for row in mine[1:])
            # within what kinks (relu) leave of the order at such large steps
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.75 * order)
        ours, theirs = (
            next(row for row in rows if (row["network"], row["solver"], row["rtol"]) == (network, name, 1e-4))
            for name in ("Dopri5", "torchdiffeq dopri5")
        )
        assert ours["evaluations"] == theirs["evaluations"]
        assert ours["relative_error"] == pytest.approx(theirs["relative_error"], rel=0.2)


def test_depth_differs_in_the_trunk_alone(measured: dict[str, list[Row]]) -> None:
    rows = measured["depth"]
    parameters = {str(row["network"]): row["parameters"] for row in rows}
    assert (parameters["none"], parameters["ResNet-1"], parameters["ODENet"]) == (10_222, 10_564, 10_564)
    assert {row["seed"] for row in rows} == {0}
    evaluations = {str(row["network"]): row["evaluations"] for row in rows}
    assert evaluations == {"none": 0, "ResNet-1": 0, "ResNet-6": 0, "ODENet": 6, "augmented": 6}


def test_dynamics_differ_in_the_field_at_the_same_evaluations(measured: dict[str, list[Row]]) -> None:
    rows = measured["dynamics"]
    parameters = {str(row["network"]): int(number(row, "parameters")) for row in rows}
    assert parameters["ConvField"] == 10_564
    assert {parameters[f"Galerkin, {basis}"] for basis in ("fourier", "polynomial", "piecewise")} == {10_564 + 2 * 342}
    assert parameters["HeavyBall"] == parameters["SecondOrder"] + 1 == 10_564 + 6 * 169 * 10 + 1
    assert {row["evaluations"] for row in rows} == {6}
    lines = Dynamics().table([*rows, *({**row, "seed": 1, "accuracy": 0.5} for row in rows)])
    assert lines[0]["points"] is None
    for line, row in zip(lines, rows, strict=True):
        gained = 50 * (number(row, "accuracy") - number(rows[0], "accuracy"))
        assert line["points"] is None or float(str(line["points"])) == pytest.approx(gained, abs=0.006)


def test_cost_tests_the_same_digits_at_every_tolerance(measured: dict[str, list[Row]]) -> None:
    rows = measured["cost"]
    assert [row["regularizer"] for row in rows if row["strength"] is None] == ["none"]
    for row in rows:
        counts = [number(row, f"evaluations_{tolerance:g}") for tolerance in (1e-3, 1e-4, 1e-5)]
        assert counts == sorted(counts)
        assert all((count - 2) % 6 == 0 for count in counts), "of a single batch: two, and six an attempted step"
        assert row["n"] == 20


def test_paper_trains_on_from_point_to_point(measured: dict[str, list[Row]]) -> None:
    rows = measured["paper"]
    assert [(row["step"], row["rtol"]) for row in rows] == [(3, None), (6, None), (6, 1e-2), (6, 1e-4)]
    assert number(rows[3], "relative_error") < number(rows[2], "relative_error")
    assert number(rows[3], "nfe_forward") > number(rows[2], "nfe_forward")


def test_flow_ends_at_the_networks_own_answer(measured: dict[str, list[Row]]) -> None:
    rows = measured["flow"]
    assert [row["t"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    assert rows[0]["direction"] == pytest.approx(1.0, abs=1e-5)
    assert number(rows[-1], "accuracy") > number(rows[0], "accuracy")


def test_digits_are_solved_apart(measured: dict[str, list[Row]]) -> None:
    rows = measured["digits"]
    assert len({row["image"] for row in rows}) == 40
    for row in rows:
        assert int(number(row, "evaluations")) >= 8
        assert (int(number(row, "evaluations")) - 2) % 6 == 0, "Dopri5 takes two and six an attempted step"
        assert row["correct"] == (row["label"] == row["predicted"])


def test_recipes_tests_the_weights_twice(measured: dict[str, list[Row]]) -> None:
    (row,) = measured["recipes"]
    assert (row["recipe"], row["digest"], row["seed"], row["epochs"]) == ("built-in", None, 0, 1)
    assert (row["parameters"], row["seconds"], row["n"]) == (10_564, 1.0, 500)
    assert 0.2 < number(row, "accuracy") < 1
    assert 0.2 < number(row, "retest") < 1


def test_steps_measures_every_pair_but_the_compiled_one(measured: dict[str, list[Row]]) -> None:
    pairs = [(row["a"], row["b"]) for row in measured["steps"]]
    assert len(pairs) == 9 + sum(importlib.util.find_spec(name) is not None for name in ("torchode", "diffrax"))
    assert all(row["ratio"] == number(row, "a_ms") / number(row, "b_ms") for row in measured["steps"])


def test_a_fit_spends_time_in_every_phase(measured: dict[str, list[Row]]) -> None:
    (row,) = measured["phases"]
    assert all(number(row, phase) > 0 for phase in ("loop", "training", "validation", "is_ode", "checkpoints"))
    assert number(row, "pictures") < 0.1 * number(row, "training")  # switched off there
