"""Checkpoints are written whole or not at all, and nothing in them is run."""

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from odenet_lightning.checkpoints import (
    BestCheckpoint,
    CheckpointError,
    LastCheckpoint,
    WholeCheckpointIO,
    atomic,
    bring_along,
    is_requeued,
)
from odenet_lightning.cli import main
from odenet_lightning.divergence import DivergenceError
from tests.processes import command, run

SIZE = 100_000
FIT = ["fit", "--data.source", "sample", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
SHORT = ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"]


def content(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((SIZE,), value)}, "pytorch-lightning_version": "2"}


def stored(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"][-1])


@pytest.mark.parametrize("part", range(10))
def test_kill_during_the_write_leaves_the_earlier_file(tmp_path: Path, part: int) -> None:
    """Killed after a tenth, two tenths, ... of the bytes."""
    path, io = tmp_path / "last.ckpt", WholeCheckpointIO()
    io.save_checkpoint(content(1.0), path)

    def killed() -> None:
        real = os.write

        class Dying:
            """A file that ends its process part of the way."""

            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> "Dying":
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

            def write(self, data: memoryview) -> None:
                real(self.file.fileno(), data[: len(data) * part // 10])
                os.kill(os.getpid(), signal.SIGKILL)

        opened = Path.open
        Path.open = lambda self, mode="r", **_: Dying(opened(self, mode))  # type: ignore[assignment, method-assign]
        io.save_checkpoint(content(2.0), path)

    assert run(killed, tmp_path) == -signal.SIGKILL
    assert stored(path) == 1.0
    io.save_checkpoint(content(3.0), path)
    assert stored(path) == 3.0
    assert [file.name for file in tmp_path.glob("*ckpt*")] == ["last.ckpt"], "what was left over is used up"


def test_disk_full_leaves_the_earlier_file(tmp_path: Path) -> None:
    """A real file system of 600 kB, and a second checkpoint for which there is no room beside the first."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        path, io = disk / "last.ckpt", WholeCheckpointIO()
        io.save_checkpoint(content(1.0), path)
        for _ in range(10):
            with pytest.raises(CheckpointError, match=r"last\.ckpt \(No space left on device\); the earlier .* whole"):
                io.save_checkpoint(content(2.0), path)
            assert stored(path) == 1.0
        assert [file.name for file in disk.iterdir()] == ["last.ckpt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_ends_a_run_in_one_line(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[int] = []
    whole = os.fsync

    def fail_later(descriptor: int) -> None:
        saves.append(descriptor)
        if len(saves) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fail_later)
    with pytest.raises(SystemExit) as ended:
        main([*FIT, "--data.root", str(sample_root), *SHORT, "--pictures.every_n_epochs", "0"])
    assert ended.value.code == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "No space left on device" in error
    assert "the best checkpoint so far is lightning_logs/version_0/checkpoints/best.ckpt" in error
    for name in ("best", "last"):
        assert torch.load(f"lightning_logs/version_0/checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def test_last_is_the_last_even_if_it_is_not_the_best(workdir: Path, sample_root: Path) -> None:
    steps = ["--last.every_n_train_steps", "3", "--pictures.every_n_epochs", "0"]
    # a learning rate of nothing: validation never gets better, so that the first epoch stays the best
    still = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e-12"]
    main([*FIT, "--data.root", str(sample_root), *SHORT, *steps, *still])
    folder = Path("lightning_logs/version_0/checkpoints")
    found = {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.iterdir()}
    assert found == {"best.ckpt": 4, "last.ckpt": 12}


def test_last_is_kept_within_an_epoch(workdir: Path, sample_root: Path) -> None:
    kill = workdir / "kill.yaml"
    kill.write_text("trainer: {callbacks: [{class_path: tests.processes.KillAt, init_args: {step: 8}}]}")
    args = [*FIT, "--data.root", str(sample_root), "--config", str(kill), "--last.every_n_train_steps", "3"]
    assert command(args, workdir) == -signal.SIGKILL
    last = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    with pytest.raises(ValueError, match="must not be negative"):
        LastCheckpoint(-1)


def test_starting_again_overwrites_nothing(workdir: Path, sample_root: Path) -> None:
    constant = ["--model.schedule", "constant"]
    args = [*FIT, "--data.root", str(sample_root), *SHORT, "--pictures.every_n_epochs", "0", *constant]
    main(args)
    before = {path: path.read_bytes() for path in Path("lightning_logs").rglob("*") if path.is_file()}
    main([*args, "--seed_everything", "1"])
    resume = ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]
    main([*args, *resume, "--trainer.max_epochs", "4"])
    for path, bytes_before in before.items():
        assert path.read_bytes() == bytes_before, path
    assert {path.name for path in Path("lightning_logs").iterdir()} == {"version_0", "version_1", "version_2"}


def test_a_folder_of_an_earlier_run_is_not_written_over(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        *FIT,
        "--data.root",
        str(sample_root),
        *SHORT,
        "--pictures.every_n_epochs",
        "0",
        "--checkpoint.dirpath",
        "ck",
        "--model.schedule",
        "constant",
    ]
    main(args)
    before = {path.name: path.read_bytes() for path in Path("ck").iterdir()}
    with pytest.raises(SystemExit):
        main([*args, "--seed_everything", "1"])
    assert "holds last.ckpt of an earlier run: name another --checkpoint.dirpath" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("ck").iterdir()} == before
    main([*args, "--ckpt_path", "ck/last.ckpt", "--trainer.max_epochs", "4"])
    assert torch.load("ck/last.ckpt", weights_only=True)["global_step"] == 16


def test_nothing_is_kept_while_gradients_add_up(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, int]] = []

    def note(_: LastCheckpoint, trainer: Trainer) -> None:
        saved.append((trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.ready))

    monkeypatch.setattr(LastCheckpoint, "_write", note)
    args = [
        "--last.every_n_train_steps",
        "1",
        "--trainer.accumulate_grad_batches",
        "2",
        "--pictures.every_n_epochs",
        "0",
    ]
    main([*FIT, "--data.root", str(sample_root), *SHORT, *args, "--trainer.max_epochs", "1"])
    assert saved == [(1, 2), (2, 4)]


def test_only_checkpoints_beside_the_resumed_one_are_brought_along(workdir: Path, sample_root: Path) -> None:
    constant = ["--model.schedule", "constant"]
    args = [*FIT, "--data.root", str(sample_root), *SHORT, "--pictures.every_n_epochs", "0", *constant]
    main(args)
    path = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    (state,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("BestCheckpoint"))
    Path("elsewhere").mkdir()
    for name in ("secret.txt", "elsewhere/other.ckpt"):
        Path(name).write_text("of nobody's business")
        state["best_model_path"], state["best_k_models"] = str(Path(name).resolve()), {}
        torch.save(checkpoint, path)
        main([*args, "--ckpt_path", str(path), "--trainer.max_epochs", "4"])
    assert not [found for found in Path("lightning_logs").rglob("*") if found.name in ("secret.txt", "other.ckpt")]


@pytest.mark.parametrize("place", ["moved", "other_cwd", "lone"])
def test_the_best_is_found_beside_the_resumed_checkpoint(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """Where the folder has moved, and from another working directory, in which the same names mean other files."""
    still = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e-12", "--model.schedule", "constant"]
    args = [*FIT, "--data.root", str(sample_root), *SHORT, "--pictures.every_n_epochs", "0", *still]
    main([*args, "--trainer.max_epochs", "1"])
    folder = workdir / "lightning_logs/version_0/checkpoints"
    if place == "moved":
        folder = Path(shutil.move(workdir / "lightning_logs", workdir / "moved")) / "version_0/checkpoints"
    else:
        Path("other").mkdir()
        monkeypatch.chdir("other")
    if place == "lone":
        folder = Path(shutil.copy(folder / "last.ckpt", ".")).parent
    capsys.readouterr()
    main([*args, "--trainer.max_epochs", "2", "--ckpt_path", str(folder / "last.ckpt")])
    (named,) = (line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("best checkpoint"))
    assert named == "lightning_logs/version_0/checkpoints/best.ckpt"
    # it never gets better than in the first epoch, unless that one is not there to compare with
    assert torch.load(named, weights_only=True)["global_step"] == (8 if place == "lone" else 4)


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val/acc", "max"), ("val/loss", "min"), ("nfe/val_forward", "min"), ("y0_error", "min")]
)
def test_the_mode_follows_from_the_monitor(monitor: str, mode: str) -> None:
    assert BestCheckpoint(monitor=monitor).mode == mode
    assert BestCheckpoint(monitor=monitor, mode="max").mode == "max"


def test_what_is_brought_along_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:2])
        raise OSError(28, "No space left on device", str(source))

    (tmp_path / "a.ckpt").write_text("whole")
    bring_along(tmp_path / "a.ckpt", tmp_path / "b" / "a.ckpt")
    assert (tmp_path / "b" / "a.ckpt").read_text() == "whole"
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*c/a.ckpt \(No space left"):
        bring_along(tmp_path / "a.ckpt", tmp_path / "c" / "a.ckpt")
    assert not list((tmp_path / "c").iterdir())


@pytest.mark.parametrize(
    ("solver", "told"),
    [
        (["Midpoint", "--model.net.solver.num_steps", "1"], "the loss is nan"),
        (["Dopri5"], "NaN or infinite"),
    ],
)
def test_divergence_keeps_the_best_checkpoint(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str], solver: list[str], told: str
) -> None:
    """An epoch that goes well, then a learning rate that does not."""
    common = ["--data.root", str(sample_root), *SHORT, "--pictures.every_n_epochs", "0", "--model.net.solver", *solver]
    common += ["--trainer.log_every_n_steps", "1"]
    config = workdir / "explode.yaml"
    config.write_text("trainer: {callbacks: [{class_path: tests.processes.Explode, init_args: {step: 6}}]}")
    with pytest.raises(SystemExit) as ended:
        main([*FIT, "--config", str(config), *common])
    assert ended.value.code == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert told in error
    assert "the best checkpoint so far is lightning_logs/version_0/checkpoints/best.ckpt" in error
    best = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 4
    assert all(value.isfinite().all() for value in best["state_dict"].values())


def test_weights_that_are_no_numbers_are_not_kept(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two looks at the loss, last.ckpt falls due."""
    config = workdir / "explode.yaml"
    config.write_text("trainer: {callbacks: [{class_path: tests.processes.Explode, init_args: {step: 6}}]}")
    args = ["--data.root", str(sample_root), "--config", str(config), "--last.every_n_train_steps", "3"]
    net = ["--model.net.solver", "Midpoint", "--model.net.solver.num_steps", "1"]
    with pytest.raises(SystemExit):
        main([*FIT, *args, *net, "--trainer.limit_train_batches", "20", "--trainer.max_epochs", "1"])
    assert "are not finite after step 6" in capsys.readouterr().err
    last = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_no_file_is_kept_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    io = WholeCheckpointIO()
    io.save_checkpoint(content(1.0), tmp_path / "any.ckpt")
    with pytest.raises(DivergenceError, match=r"the weights weight are not finite after step 7"):
        io.save_checkpoint(content(float("nan")) | {"global_step": 7}, tmp_path / "any.ckpt")
    assert stored(tmp_path / "any.ckpt") == 1.0


def test_divergence_before_a_validation_leaves_no_best_checkpoint(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two looks at the training loss; validation sees it first."""
    net = ["--model.net", "ODENet", "--model.net.solver", "Midpoint", "--model.net.solver.num_steps", "2"]
    rate = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1000"]
    often = ["--trainer.val_check_interval", "10", "--trainer.log_every_n_steps", "1000", "--trainer.max_epochs", "1"]
    with pytest.raises(SystemExit):
        main([*FIT, "--data.root", str(sample_root), *net, *rate, *often, "--pictures.every_n_epochs", "0"])
    told = capsys.readouterr().err
    assert "the loss is nan in validation after step 10" in told
    assert "there is no checkpoint yet" in told
    assert not list(Path("lightning_logs").rglob("*.ckpt"))


def test_an_empty_restart_count_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": ""}.items():
        monkeypatch.setenv(name, value)
    assert not is_requeued()
