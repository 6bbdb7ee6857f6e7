"""Slips that can be foreseen, and abbreviations, end in one line that says what to do."""

from pathlib import Path

import pytest

from tests.helpers import QUICK, SAMPLE, fails


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--trainer.callbacks", "LearningRateFinder"], "compare a few --model.optimizer.lr"),
        (["--trainer.callbacks", "BatchSizeFinder"], "never fill it: give --data.batch_size"),
        (
            ["--checkpoint.monitor", "val/accc", "--checkpoint.mode", "max"],
            "--checkpoint.monitor val/accc is not logged: what is, is 'train/loss'",
        ),
        (["--trainer.callbacks", "BackboneFinetuning"], "needs the module to have 'backbone'"),
        (["--trainer.callbacks", "EarlyStopping"], "the following arguments are required: monitor"),
        (["--checkpoint.monitor", "lr"], "whether lr should be large or small is not known: give --checkpoint.mode"),
        (["--checkpoint.filename", "last"], "which is kept anyway: leave out --checkpoint.filename last"),
        (["--checkpoint.save_last", "true"], "which is kept anyway: leave out --checkpoint.save_last"),
        (["--trainer.barebones", "true"], "--trainer.barebones is for loops without logging and checkpoints"),
        (["--trainer.devices", "x"], "should be an int > 0"),
        (["--trainer.accumulate_grad_batches", "0"], "--trainer.accumulate_grad_batches must be positive, not 0"),
        (["--trainer.val_check_interval", "0"], "--trainer.val_check_interval must be positive, not 0"),
        (["--data.augment", "Deform", "--data.augment.degrees", "-3"], "Deform: degrees must not be negative"),
        (["--model.optimizer.lr", "0.3", "--model.optimizer", "SGD"], "its settings need its class before them"),
    ],
)
def test_foreseeable_slips(
    args: list[str], told: str, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    error = fails(
        ["fit", *SAMPLE, "--data.root", str(sample_root), "--trainer.accelerator", "cpu", *few, *args], capsys
    )
    assert told in error
    assert "unexpected" not in error


@pytest.mark.parametrize("flag", ["--ckpt", "--conf", "--ckpt_pat=", "--trainer.max_epoch"])
def test_no_option_is_abbreviated(
    flag: str, run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An abbreviated checkpoint would bring neither its settings nor the question whether it is trusted."""
    Path("c.yaml").write_text("trainer: {max_epochs: 1}")
    value = {"--conf": "c.yaml", "--trainer.max_epoch": "1"}.get(flag, str(run / "checkpoints/last.ckpt"))
    few = [*QUICK, "--trainer.fast_dev_run", "1", *SAMPLE, "--data.root", str(sample_root)]
    given = [flag + value] if flag.endswith("=") else [flag, value]
    error = fails(["fit", *few, *given], capsys)
    assert f"unrecognized arguments: {' '.join(given)} (options are written out in full" in error


def test_no_option_of_a_study_is_abbreviated(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --qui " in fails(["study", "gradients", "--qui"], capsys)
