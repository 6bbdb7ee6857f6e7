"""The promises of a study: no row lost or measured twice, and rows complete."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odenet_lightning.models import Classifier
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import Midpoint
from odenet_lightning.studies import run, training
from odenet_lightning.studies.digits import Digits
from odenet_lightning.studies.paper import Paper
from odenet_lightning.studies.recipes import Recipes, digest
from odenet_lightning.studies.rows import Ledger
from tests.processes import run as run_in_process
from tests.squares import Squares
from tests.tiny_studies import PROVENANCE


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


def test_a_changed_config_is_trained_anew(workdir: Path) -> None:
    Path("mine.yaml").write_text("trainer: {max_epochs: 1}\n")
    before = digest("mine.yaml")
    (case,) = Recipes(configs=["mine.yaml"], seeds=1, seed=5).cases()
    assert case == {"recipe": "mine.yaml", "digest": before, "seed": 5}
    Path("mine.yaml").write_text("trainer: {max_epochs: 2}\n")
    assert digest("mine.yaml") != before
    with pytest.raises(ValueError, match=r"there is no config other.yaml"):
        Recipes(configs=["other.yaml"]).check()


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
