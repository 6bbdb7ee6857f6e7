"""The promises of a study: no row lost or measured twice, rows complete, and numbers that are right."""

import importlib.util
import math
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from odenet_lightning.checkpoints import RefusedCheckpoint
from odenet_lightning.cli import main
from odenet_lightning.gradients import Adjoint
from odenet_lightning.models import Classifier, ODENet, PyramidODENet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import Dopri5, Midpoint
from odenet_lightning.studies import STUDIES, loop, phases, recipes, run, training
from odenet_lightning.studies import steps as steps_study
from odenet_lightning.studies.command import run_command
from odenet_lightning.studies.cost import TOLERANCES, Cost
from odenet_lightning.studies.digits import Digits
from odenet_lightning.studies.dynamics import Dynamics
from odenet_lightning.studies.flow import separation
from odenet_lightning.studies.gradients import GRADIENTS, Gradients
from odenet_lightning.studies.in_jax import jitted_step
from odenet_lightning.studies.intervals import half_width
from odenet_lightning.studies.ledger import Ledger
from odenet_lightning.studies.memory import HeldBytes, LiveBytes
from odenet_lightning.studies.pairs import summary
from odenet_lightning.studies.paper import Paper
from odenet_lightning.studies.recipes import Recipes, digest
from odenet_lightning.studies.solvers import Solvers
from odenet_lightning.studies.steps import Steps
from odenet_lightning.studies.study import Row, number
from tests.processes import run as run_in_process
from tests.squares import Squares

PROVENANCE = {"seed", "version", "commit", "torch", "hardware", "threads", "config"}


@pytest.fixture
def squares(workdir: Path, sample_root: Path) -> dict[str, Any]:
    return {"root": str(sample_root), "source": "sample"}


@pytest.mark.parametrize("until", [-1, 0, 3])
@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_study_measures_what_is_missing(
    squares: dict[str, Any], workdir: Path, until: int, killed: bool
) -> None:
    folder = workdir / "study"
    interrupted = Squares(**squares, until=until, killed=killed)
    if killed:
        assert run_in_process(lambda: run(interrupted, folder), workdir) == -signal.SIGKILL
    else:
        with pytest.raises(KeyboardInterrupt):
            run(interrupted, folder)
    rows = run(Squares(**squares), folder)
    assert [(row["number"], row["square"]) for row in rows] == [(number, number**2) for number in range(6)]
    assert (workdir / "squared.txt").read_text().split() == [str(number) for number in range(6)]
    assert Ledger(folder / "rows.csv").rows == rows


def test_more_cases_are_added_and_other_settings_measured_anew(
    squares: dict[str, Any], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Squares(**squares, count=2), workdir / "study")
    run(Squares(**squares, count=4), workdir / "study")
    assert "2 of 4 rows are there already" in capsys.readouterr().out
    cubes = run(Squares(**squares, count=2, power=3), workdir / "study")
    assert [row["square"] for row in cubes] == [0, 1]
    assert (workdir / "squared.txt").read_text().split() == ["0", "1", "2", "3", "0", "1"]
    assert len(run(Squares(**squares, count=4), workdir / "study")) == 4
    assert len(Ledger(workdir / "study" / "rows.csv").rows) == 6


def test_a_study_leaves_rows_a_picture_and_tensorboards(squares: dict[str, Any], workdir: Path) -> None:
    rows = run(Squares(**squares), workdir / "study")
    assert set(rows[0]) == {"number", "square", "n"} | PROVENANCE
    assert rows[0]["torch"] == torch.__version__
    assert '"source": "sample"' in str(rows[0]["config"])
    text = (workdir / "study" / "rows.csv").read_text()
    assert str(workdir) not in text, "where files lie is not what was measured"
    assert squares["root"] not in text
    with Image.open(workdir / "study" / "figure.png") as picture:
        assert picture.size == (300, 300)
    events = EventAccumulator(str(workdir / "study"), size_guidance={"images": 0}).Reload()
    (image,) = events.Images("study")
    assert (image.width, image.height) == (300, 300)


def test_a_study_says_what_it_measures_from_the_start(
    squares: dict[str, Any], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its question before anything is measured, in a log a line for the first row, and in the end the answer."""
    with pytest.raises(KeyboardInterrupt):
        run(Squares(**squares, until=-1), workdir / "study")
    begun = capsys.readouterr()
    assert begun.out.startswith("study: A study of squares, which gives up where it is told to.")
    assert begun.err.startswith("study: row 1 of 6: number 0\n")
    run(Squares(**squares), workdir / "study")
    out = capsys.readouterr().out
    assert "answer: the largest is 25." in out
    assert max(map(len, out.splitlines()[:-2])) <= 80


def test_rows_from_elsewhere_are_kept_and_told(
    squares: dict[str, Any], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Squares(**squares), workdir / "study")
    assert "warning" not in capsys.readouterr().err
    path = workdir / "study" / "rows.csv"
    path.write_text(path.read_text().replace(torch.__version__, "1.0"))
    run(Squares(**squares), workdir / "study")
    assert "rows from another torch are kept (1.0; now" in capsys.readouterr().err


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


def run_here(args: list[str], folder: Path, threads: int | None = None) -> float:
    """A command of a study, cut short and in this process: importing everything again would take most of the time."""
    short = [
        "--trainer.limit_train_batches",
        "21",
        "--trainer.limit_val_batches",
        "1",
        "--pictures.every_n_epochs",
        "0",
    ]
    if "--trainer.devices" in args:
        args = [*args, "--trainer.devices", "1"]
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*args, *short])
    return 1.0


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
    assert tested == [repr(Midpoint(num_steps=3)), repr(Dopri5(1e-3, 1e-3))]
    assert (row["accuracy"], row["retest"]) == (0.1, 0.2)


def test_steps_measures_every_pair_but_the_compiled_one(measured: dict[str, list[Row]]) -> None:
    pairs = [(row["a"], row["b"]) for row in measured["steps"]]
    assert len(pairs) == 9 + sum(importlib.util.find_spec(name) is not None for name in ("torchode", "diffrax"))
    assert all(row["ratio"] == number(row, "a_ms") / number(row, "b_ms") for row in measured["steps"])


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


def test_a_changed_config_is_trained_anew(workdir: Path) -> None:
    Path("mine.yaml").write_text("trainer: {max_epochs: 1}\n")
    before = digest("mine.yaml")
    (case,) = Recipes(configs=["mine.yaml"], seeds=1, seed=5).cases()
    assert case == {"recipe": "mine.yaml", "digest": before, "seed": 5}
    Path("mine.yaml").write_text("trainer: {max_epochs: 2}\n")
    assert digest("mine.yaml") != before
    with pytest.raises(ValueError, match=r"there is no config other.yaml"):
        Recipes(configs=["other.yaml"]).check()


def test_recipes_of_one_name_are_refused(workdir: Path) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "mine.yaml").touch()
    with pytest.raises(ValueError, match=r"two configs are named mine.yaml"):
        Recipes(configs=["a/mine.yaml", "b/mine.yaml"]).check()


@pytest.mark.slow
def test_a_failed_command_is_named_with_its_last_line(workdir: Path) -> None:
    with pytest.raises(RuntimeError, match=r"'fit --data.source moon ...' ended with code 2: .*moon"):
        run_command(["fit", "--data.source", "moon"], workdir)
    assert run_command(["fit", "--print_config"], workdir) > 0


@pytest.mark.parametrize("name", list(STUDIES))
def test_help_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", name, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(STUDIES[name]):
        assert re.search(rf"--{field.name}\+? \S+ [a-z][^()]+.*?\(type: ", text), field.name


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a call that must fail; returns its one line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code in (1, 2)
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return error


def test_errors_are_one_line(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--root", str(sample_root), "--source", "sample"]
    assert "gradients" in fails(["study"], capsys)
    assert "nothing" in fails(["study", "nothing"], capsys)
    assert "steps must be at most" in fails(["study", "paper", *at, "--steps", "100"], capsys)
    assert "tolerances must be a list" in fails(["study", "paper", *at, "--tolerances", "[]"], capsys)
    assert "tolerances must be a list" in fails(["study", "paper", *at, "--tolerances", "[0.1,0.1]"], capsys)
    assert "depths must be positive, not 0" in fails(["study", "gradients", *at, "--depths", "[0]"], capsys)
    assert "batch_size must be positive" in fails(["study", "depth", *at, "--batch_size", "-4"], capsys)
    assert "device must be" in fails(["study", "depth", *at, "--device", "gpu"], capsys)
    assert "frames must be 5, 9" in fails(["study", "flow", *at, "--frames", "6"], capsys)
    assert "there is no checkpoint none.ckpt" in fails(["study", "digits", *at, "--ckpt_path", "none.ckpt"], capsys)
    if not torch.cuda.is_available():
        assert "--device cpu" in fails(["study", "paper", *at, "--device", "cuda"], capsys)
    (workdir / "rows.csv").write_text("a,b\n1,2\n1\n")
    assert "move it away" in fails(["study", "depth", *at, "--folder", "."], capsys)


def test_an_interrupted_command_says_so_and_fails(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, "squares", Squares)
    args = ["study", "squares", "--root", str(sample_root), "--source", "sample"]
    with pytest.raises(SystemExit) as ended:
        main([*args, "--until", "2"])
    assert ended.value.code == 130
    assert "interrupted: the rows so far are in lightning_logs/study-squares" in capsys.readouterr().err
    monkeypatch.setattr(Squares, "draw", lambda *_: (_ for _ in ()).throw(SIGTERMException))
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 143


def test_quick_in_a_config_is_the_flag(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, "squares", Squares)
    monkeypatch.setattr(Squares, "quick", {"count": 3, "power": 4})
    Path("quick.yaml").write_text("quick: true\npower: 1\n")
    main(["study", "squares", "--root", str(sample_root), "--config", "quick.yaml"])
    rows = Ledger(Path("lightning_logs/study-squares-quick/rows.csv")).rows
    assert [row["square"] for row in rows] == [0, 1, 2], "three of them, and the config's own values win"


def test_a_network_with_parts_of_others_is_imported_only_if_trusted(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    Path("swirls.py").write_text(
        "from odenet_lightning.fields import ConvField\n\n\nclass Swirl(ConvField):\n    pass\n"
    )
    config = {"class_path": "odenet_lightning.ODENet", "init_args": {"field": {"class_path": "swirls.Swirl"}}}
    state = {f"net.{key}": value for key, value in ODENet().state_dict().items()}
    parts = {"state_dict": state, "pytorch-lightning_version": "2", "hyper_parameters": {"net": config}}
    torch.save(parts, "foreign.ckpt")
    for trusted in (None, "swirl", "swirls.Swirl.Other", "s.irls", "other"):
        with pytest.raises(RefusedCheckpoint, match=r"names 'swirls.Swirl'.*--trusted MODULE"):
            ClassifierModule.load_from_checkpoint("foreign.ckpt", trusted=trusted)
    assert "swirls" not in sys.modules
    for trusted in ("swirls", "swirls.Swirl"):
        net = ClassifierModule.load_from_checkpoint("foreign.ckpt", trusted=trusted).net
        assert isinstance(net, ODENet)
        assert type(net.block.field).__name__ == "Swirl"
    del sys.modules["swirls"]


def test_kept_weights_are_taken_up_by_the_same_code_on_the_same_machine_only(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[float] = []

    def train(make: Callable[[], Classifier], *_: object) -> ClassifierModule:
        module = ClassifierModule(make())
        trained.append(float(module.net.state_dict()["head.fc.bias"][0]))
        return module

    monkeypatch.setattr(training, "train", train)
    study = Digits(root=str(sample_root), source="sample")
    for commit, runs in (("a", 1), ("a", 1), ("b", 2), ("a", 2)):
        study.provenance = {"commit": commit}
        net = training.trained_odenet(study, epochs=2)
        assert len(trained) == runs
        assert float(net.state_dict()["head.fc.bias"][0]) == trained[commit == "b"]
    training.trained_odenet(study, epochs=3)
    training.trained_odenet(study, 2, Midpoint(num_steps=2))
    assert len(trained) == 4


def test_training_that_is_lost_is_done_again(workdir: Path, sample_root: Path) -> None:
    few: dict[str, Any] = {"channels": 1, "points": 2, "steps": 2, "batch_size": 8, "repeats": 1}
    study = Paper(root=str(sample_root), source="sample", **few, tolerances=[0.1])
    figures = []
    for _ in range(2):
        study.folder, study.solved = workdir, None
        figures.append([study.measure(case)["relative_error"] for case in study.cases()][-1])
        shutil.rmtree(workdir / "weights")
    assert study.measure(study.cases()[-1])["relative_error"] == figures[0] == figures[1]
    study.provenance = {"commit": "another"}
    assert not Path(study._checkpoint(1)).exists()


def test_two_runs_do_not_share_a_folder(workdir: Path, sample_root: Path) -> None:
    study = Squares(root=str(sample_root), source="sample")
    with FileLock(workdir / ".lock"), pytest.raises(ValueError, match="another run is at work"):
        run(study, workdir)
    assert not Path("rows.csv").exists()
    run(study, workdir)
    run(study, workdir)


def test_a_fits_checkpoint_can_be_studied(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--data.source", "sample", "--data.root", str(sample_root)]
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]
    few += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.log_every_n_steps", "1"]
    plain = ["--pictures.every_n_epochs", "0"]
    main(["fit", *at, *few, *plain, "--model.net.channels", "2", "--data.split_seed", "7"])
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    net = ClassifierModule.load_from_checkpoint(path).net.eval()
    assert isinstance(net, ODENet)
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[f"net.{key}"]) for key, value in net.state_dict().items())
    assert not net.training
    main(
        ["study", "digits", "--root", str(sample_root), "--source", "sample", "--ckpt_path", path, "--images_used", "3"]
    )
    (row, *_) = Ledger(Path("lightning_logs/study-digits/rows.csv")).rows
    assert '"network": "' in str(row["config"])
    assert path not in str(row["config"])
    assert '"split_seed": 7' in str(row["config"]), "the digits that it was not trained on"
    main(["fit", *at, *few, "--model.net", "ResNet", *plain])
    again = "lightning_logs/version_1/checkpoints/last.ckpt"
    error = fails(["study", "flow", "--root", str(sample_root), "--source", "sample", "--ckpt_path", again], capsys)
    assert "holds a ResNet, which has no ODE block to study" in error


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


def test_a_fit_spends_time_in_every_phase(measured: dict[str, list[Row]]) -> None:
    (row,) = measured["phases"]
    assert all(number(row, phase) > 0 for phase in ("loop", "training", "validation", "is_ode", "checkpoints"))
    assert number(row, "pictures") < 0.1 * number(row, "training")  # switched off there
