"""Checkpoints are written whole or not at all, and none is written over."""

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from odenet_lightning.checkpoints import (
    CheckpointError,
    LastCheckpoint,
    WholeCheckpointIO,
    atomic,
    bring_along,
    is_requeued,
)
from odenet_lightning.cli import main
from tests.fits import FIT, SHORT, content, stored
from tests.processes import command, run


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


def test_an_empty_restart_count_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": ""}.items():
        monkeypatch.setenv(name, value)
    assert not is_requeued()
