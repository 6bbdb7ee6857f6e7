"""Runs that go on: resumed, interrupted, requeued, or started from weights."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odenet_lightning.callbacks import Throughput
from odenet_lightning.cli import main
from odenet_lightning.cli.app import CLI
from tests.helpers import FEW, QUICK, SAMPLE, fails


def score_of(checkpoint: dict[str, Any]) -> torch.Tensor:
    """The metric by which the best checkpoint is chosen."""
    return next(state for name, state in checkpoint["callbacks"].items() if "val/acc" in name)["best_model_score"]


@pytest.mark.filterwarnings("default:no step was taken")
def test_resuming_continues_in_a_new_folder(
    run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, workdir / "lightning_logs/version_0")
    before = {path: path.stat().st_mtime_ns for path in (workdir / "lightning_logs/version_0").rglob("*")}
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    resume = ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]
    main(["fit", *SAMPLE, "--data.root", str(sample_root), *FEW, *resume])
    told = capsys.readouterr()
    assert "no step was taken: the checkpoint's run is complete" in told.err
    assert f"best val/acc     {float(score_of(checkpoint)):.2%}" in told.out, (
        "it is remembered, and the file brought along"
    )
    assert (workdir / "lightning_logs/version_1/checkpoints/best.ckpt").is_file()
    assert before == {path: path.stat().st_mtime_ns for path in before}, "an earlier run's files were touched"
    assert (workdir / "lightning_logs/version_1").is_dir()


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt, 130), (SIGTERMException, 143)])
def test_an_interrupted_fit_says_how_to_go_on(
    workdir: Path,
    sample_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: type[BaseException],
    code: int,
) -> None:
    monkeypatch.setattr(Throughput, "on_train_epoch_start", lambda _, trainer, __: interrupt(trainer, end))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning ignores Ctrl-C from its first one on
    few = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *QUICK, *few])
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert (
        "interrupted at step 2: the same command with --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt"
        in said
    )


def interrupt(trainer: Trainer, end: type[BaseException]) -> None:
    if trainer.current_epoch == 1:
        raise end


def test_a_requeued_job_goes_on_from_its_own_state(
    run: Path, workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was started from: that lies behind it."""
    shutil.copy(run / "checkpoints/best.ckpt", workdir / "begin.ckpt")
    seen: list[str | None] = []
    monkeypatch.setattr(Trainer, "fit", lambda *_, ckpt_path=None, **__: seen.append(ckpt_path))
    monkeypatch.setattr(CLI, "after_fit", lambda _: None)
    monkeypatch.setattr(Trainer, "log_dir", property(lambda self: self.logger.log_dir))
    in_job = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"}
    for name, value in in_job.items():
        monkeypatch.setenv(name, value)
    args = ["fit", *SAMPLE, "--data.root", str(sample_root), *QUICK, "--ckpt_path", "begin.ckpt"]
    main(args)
    own = workdir / "lightning_logs/77/checkpoints/last.ckpt"
    own.parent.mkdir(parents=True)
    shutil.copy(run / "checkpoints/last.ckpt", own)
    main(args)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    main(args)
    assert [Path(path or "").resolve() for path in seen] == [workdir / "begin.ckpt"] * 2 + [own]


def test_two_fits_and_a_test_within_one_job(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    few = [*SAMPLE, "--data.root", str(sample_root), *QUICK[:4], "--trainer.max_epochs", "1"]
    few += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    main(["fit", *few])
    main(["fit", *few])
    main(["test", *few, "--ckpt_path", "lightning_logs/77/checkpoints/best.ckpt"])
    assert "Accuracy on 500 test images" in capsys.readouterr().out
    assert (workdir / "lightning_logs/version_0/checkpoints/best.ckpt").is_file()


@pytest.mark.filterwarnings("default:no step was taken")
@pytest.mark.parametrize(
    ("limits", "schedule", "told"),
    [
        (["--trainer.max_epochs", "1"], "constant", "give a larger --trainer.max_epochs"),
        (["--trainer.max_steps", "2"], "constant", "give a larger --trainer.max_steps"),
        (
            ["--trainer.max_steps", "2", "--trainer.max_epochs", "1"],
            "constant",
            "give a larger --trainer.max_steps and a larger --trainer.max_epochs",
        ),
        (
            ["--trainer.max_epochs", "1"],
            "cosine",
            "so is its cosine schedule: train its weights on with a",
        ),
    ],
)
def test_advice_after_a_complete_run(
    limits: list[str], schedule: str, told: str, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--pictures.every_n_epochs", "0"]
    fit = ["fit", *SAMPLE, "--data.root", str(sample_root), *QUICK[:4], *few, "--model.schedule", schedule]
    main([*fit, *limits])
    resume = ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]
    capsys.readouterr()
    main([*fit, *limits, *resume])
    assert told in capsys.readouterr().err
    if told.endswith("give a larger --trainer.max_epochs"):  # the advice works
        larger = [str(2 * int(word)) if word.isdigit() else word for word in limits]
        main([*fit, *larger, *resume])
        out = capsys.readouterr()
        assert "4 steps" in out.out
        assert "no step was taken" not in out.err
    if schedule == "cosine":
        main([*fit, *limits, "--weights", resume[1]])
        out = capsys.readouterr().out
        assert f"parameters, from the weights of {resume[1]}" in out
        assert "trained          1 epochs, 2 steps" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["--model.optimizer", "torch.optim.SGD"],
            "trained with MuonWithAdamW, this run has SGD: resume",
        ),
        (
            ["--model.schedule", "constant"],
            "trained with one_cycle, this run has constant: resume",
        ),
    ],
)
def test_a_run_is_not_resumed_with_another_optimizer_or_schedule(
    given: list[str], told: str, run: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor at the rate at which a cycle has ended."""
    last = str(run / "checkpoints/last.ckpt")
    error = fails(["fit", "--ckpt_path", last, *given], capsys)
    assert told in error
    assert error.endswith(f"with a new optimiser and schedule (fit --weights {last})")


def test_a_new_run_starts_from_weights(
    run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the network and the data that go with them, and an optimiser and a schedule of its own."""
    few = ["--trainer.accelerator", "cpu", "--data.root", str(sample_root), "--trainer.log_every_n_steps", "1"]
    few += ["--trainer.limit_val_batches", "2", "--trainer.num_sanity_val_steps", "0"]
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    weights = {key: best[key] for key in ("state_dict", "hyper_parameters", "pytorch-lightning_version", "warm_steps")}
    torch.save({**weights, **{key: best[key] for key in best if key.startswith(("data", "MNIST"))}}, "weights.ckpt")
    # with a rate of 0 they stay
    still = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0", "--model.schedule", "constant"]
    main(["fit", "--weights", "weights.ckpt", *still, *few, "--trainer.max_steps", "3"])
    out = capsys.readouterr().out
    assert "digits           sample" in out
    last = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    for name, weight in best["state_dict"].items():
        assert torch.equal(weight, last["state_dict"][name]), name
    assert yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())["weights"] == "weights.ckpt"
    # its own config, which names the weights, resumes it
    main(
        [
            "fit",
            "--config",
            "lightning_logs/version_0/config.yaml",
            "--ckpt_path",
            "lightning_logs/version_0/checkpoints/last.ckpt",
            "--trainer.max_steps",
            "5",
        ]
    )
    out = capsys.readouterr().out
    assert "from the weights" not in out
    assert "5 steps" in out


def test_weights_alone_are_not_resumed(run: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "loops", "callbacks"):
        del checkpoint[key]
    torch.save(checkpoint, "weights.ckpt")
    error = fails(["fit", "--ckpt_path", "weights.ckpt"], capsys)
    assert "holds weights without the optimiser's state" in error
    assert "(fit --weights weights.ckpt)" in error
