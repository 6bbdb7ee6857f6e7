"""The sentences that studies print, computed from the rows."""

import itertools

import pytest

from odenet_lightning.studies.columns import Row
from odenet_lightning.studies.dynamics import Dynamics
from odenet_lightning.studies.flow import forward_and_rest
from odenet_lightning.studies.pairs import PairStudy
from odenet_lightning.studies.phases import PHASES
from tests.made_studies import depth_rows, made


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0.5, 0.6, 0.7], "yes: the ODE gains +0.60 ± 0.25 points"),
        ([-0.5, -0.6, -0.7], "no, it is worse: the ODE gains -0.60 ± 0.25"),
        ([0.5, -0.6, 0.2], "no, they are indistinguishable"),
        ([0.5, 0.6], "undecided: the ODE gains +0.55 points"),
    ],
)
def test_depth_is_answered_by_its_rows(gains: list[float], said: str) -> None:
    assert said in made("depth").answer(depth_rows(gains))


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0.5, 0.6, 0.7], "different from ConvField: HeavyBall; the best is HeavyBall, by +0.60 ± 0.25 points (n = 3)"),
        ([-0.5, -0.6, -0.7], "different from ConvField: HeavyBall; the best is Galerkin, fourier, by +0.00"),
        ([0.5, -0.6, 0.2], "none is distinguishable from ConvField; the best is HeavyBall, by +0.03 ±"),
        ([0.5, 0.6], "none is distinguishable from ConvField; the best is HeavyBall, by +0.55 points (n = 2)"),
    ],
)
def test_dynamics_are_answered_by_their_rows(gains: list[float], said: str) -> None:
    common = {"parameters": 10_000, "seconds": 1.0, "evaluations": 6}
    rows: list[Row] = [
        {**common, "network": name, "seed": seed, "accuracy": 0.9 + (gain / 100 if name == "HeavyBall" else 0)}
        for seed, gain in enumerate(gains)
        for name in Dynamics.networks
    ]
    assert said in made("dynamics").answer(rows)
    points = {line["network"]: str(line["points"]) for line in made("dynamics").table(rows)}
    assert points["ConvField"] == "None"
    assert points["HeavyBall"].startswith(f"{sum(gains) / len(gains):+.2f}")


def test_phases_are_answered_by_their_rows() -> None:
    seconds = {**dict.fromkeys(PHASES, 0.5), "training": 5.0, "pictures": 2.0, "total": 10.0, "n": 1}
    rows: list[Row] = [
        {"recipe": "built-in", "run": run, **seconds, "exit": exit} for run, exit in enumerate((0, 1, 9))
    ]
    assert made("phases").answer(rows) == "built-in: 50% trains; of the rest most is pictures, 20%."
    (line,) = made("phases").table(rows)
    assert (line["exit"], line["n"]) == (1, 3)


@pytest.mark.parametrize(("images", "said"), [(640, "no: at 128"), (16, "yes: at 128")])
def test_gradients_are_answered_by_their_rows(images: int, said: str) -> None:
    common = {"rtol": None, "n": 5, "nfe_forward": 128}
    rows: list[Row] = [
        {
            **common,
            "gradient": "Backprop",
            "num_steps": 64,
            "images_per_gib": images,
            "peak_bytes": 100,
            "seconds": 1.0,
        },
        {**common, "gradient": "Checkpoint", "num_steps": 64, "images_per_gib": 9, "peak_bytes": 20, "seconds": 1.5},
        {**common, "gradient": "Adjoint", "num_steps": 64, "n": 0, "images_per_gib": None, "nfe_forward": None},
    ]
    answer = made("gradients").answer(rows)
    assert answer.startswith(said)
    assert f"{images / 32:.1f} batches of 32" in answer
    assert "0.20 of its peak memory in 1.50 of its time" in answer


@pytest.mark.parametrize(("accurate", "said"), [(0.88, "has learned its solver"), (0.979, "is an ODE")])
def test_solvers_are_answered_by_their_rows(accurate: float, said: str) -> None:
    rows: list[Row] = [
        {"network": "one Euler step", "solver": solver, "num_steps": steps, "rtol": rtol, "relative_error": error}
        | {"accuracy": accuracy, "n": 1_000}
        for solver, steps, rtol, error, accuracy in (
            ("Euler", 1, None, 0.4, 0.98),
            ("Midpoint", 1, None, 0.1, 0.99),
            ("Dopri5", None, 1e-6, 1e-5, accurate),
        )
    ]
    answer = made("solvers").answer(rows)
    assert said in answer
    assert f"98.00 % with 1 Euler step, {100 * accurate:.2f} % with Dopri5 at 1e-06" in answer


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ([20.0, 21.0, 22.0], "evaluations are saved by Kinetic at 0.1 (+21.00 ± 2.48 %"),
        ([20.0, -21.0, 22.0], "undecided with n = 3, every interval of what is saved includes zero"),
        ([20.0, 21.0], "undecided with n = 2, too few for an interval; on average the most is saved by Kinetic at 0.1"),
    ],
)
def test_cost_is_answered_by_its_rows(saved: list[float], said: str) -> None:
    rows: list[Row] = []
    for seed, less in enumerate(saved):
        for name, strength, evaluations in (("none", None, 100.0), ("Kinetic", 0.1, 100.0 - less)):
            tolerances = {f"evaluations_{t:g}": evaluations for t in (1e-3, 1e-4, 1e-5)}
            accuracies = {f"accuracy_{t:g}": 0.9 for t in (1e-3, 1e-4, 1e-5)}
            rows.append({"regularizer": name, "strength": strength, "seed": seed, **tolerances, **accuracies})
    assert said in made("cost").answer(rows)


def test_paper_is_answered_by_its_rows() -> None:
    rows: list[Row] = [{"rtol": None, "nfe_forward": work} for work in (26, 32)]
    rows += [
        {"rtol": 10.0**-power, "nfe_forward": 20 * power, "nfe_backward": 30 * power, "relative_error": 10.0**-power}
        for power in (1, 2, 3)
    ]
    answer = made("paper").answer(rows)
    assert "the error falls with every tighter tolerance" in answer
    assert "grow during training (26 to 32)" in answer
    assert "takes 1.5 times" in answer
    assert "does not fall" in made("paper").answer([*rows, {**rows[-1], "rtol": 1e-4, "relative_error": 1.0}])
    assert "do not grow" in made("paper").answer([rows[1], rows[0], *rows[2:]])


def test_flow_is_answered_by_its_rows() -> None:
    rows: list[Row] = [
        {"accuracy": 0.358, "separation": 0.26, "direction": 1.0},
        {"accuracy": 0.992, "separation": 0.35, "direction": 0.5},
    ]
    answer = made("flow").answer(rows)
    assert "from 35.80 % to 99.20 %" in answer
    assert "from 0.26 to 0.35, while dy/dt turns by 60 degrees" in answer


@pytest.mark.parametrize(("wrong", "said"), [(80, "are no harder"), (92, "are harder"), (None, "all digits are right")])
def test_digits_are_answered_by_their_rows(wrong: int | None, said: str) -> None:
    rows: list[Row] = [
        {"label": label, "correct": True, "evaluations": 80 + 6 * (label == 3) + place, "confidence": 0.9}
        for label, place in itertools.product((3, 5, 7), range(4))
    ]
    if wrong is not None:
        rows += [{"label": 5, "correct": False, "evaluations": wrong + place, "confidence": 0.5} for place in range(3)]
    answer = made("digits", source="sample").answer(rows)
    assert said in answer
    if wrong is None:
        assert answer.startswith("class 3 takes the most evaluations (87.5), class 5 the fewest (81.5)")


def test_recipes_are_answered_by_their_rows() -> None:
    common = {"epochs": 3, "parameters": 10_564, "seconds": 17.0, "retest": None}
    rows: list[Row] = [
        {**common, "recipe": name, "accuracy": accuracy} for name, accuracy in (("a.yaml", 0.98), ("b.yaml", 0.99))
    ]
    answer = made("recipes").answer(rows)
    assert answer == "the most accurate of 2 recipes is b.yaml: test accuracy 99.00 % (1 run of 17 s)."
    assert made("recipes").answer(rows[:1]) == "a.yaml: test accuracy 98.00 % (1 run of 17 s)."


def test_pairs_are_answered_by_their_rows() -> None:
    row: Row = {"a": "one way", "b": "another", "batch": 16, "a_ms": 1.0, "b_ms": 2.0, "n": 7}
    rows = [{**row, "ratio": ratio, "low": ratio, "high": ratio} for ratio in (0.5, 0.06)]
    study = made("loop")
    assert isinstance(study, PairStudy)
    assert "takes 0.06 to 0.5 times as long with one way as with another." in study.answer(rows)
    assert study.table([{**rows[0], "n": 1}])[0]["spread"] is None
    assert study.table(rows)[0]["spread"] == "0.5 to 0.5"


def test_flow_runs_forwards_and_rests() -> None:
    order = forward_and_rest(21)
    assert order[:21] == list(range(21))
    assert order[21:] == [20] * 10
