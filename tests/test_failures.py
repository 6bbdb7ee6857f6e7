"""Processes that die, and runs that go on for long."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import command

SMALL = ["--data.source", "sample", "--trainer.accelerator", "cpu", "--pictures.every_n_epochs", "0"]


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_end_well(tmp_path: Path, sample_root: Path, launcher: str) -> None:
    """With parts of the user's own, too, of which the end says more."""
    (tmp_path / "mine.py").write_text(
        "from odenet_lightning.fields import ConvField\n\n\nclass Own(ConvField):\n    pass\n"
    )
    short = ["--trainer.devices", "2", "--trainer.max_steps", "3", "--trainer.limit_val_batches", "2"]
    own = ["--model.net", "ODENet", "--model.net.field", "mine.Own"]
    fit = ["-m", "odenet_lightning", "fit", *SMALL, "--data.root", str(sample_root), *short, *own]
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if launcher == "torchrun" else []
    project = f"{Path(__file__).parents[1]}:{tmp_path}"
    environment = {**os.environ, "PYTHONPATH": project, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *run, *fit], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("test it ") == 1
    assert "test --config lightning_logs/version_0/config.yaml --ckpt_path" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_a_dead_worker_ends_the_others(tmp_path: Path, sample_root: Path, launcher: str) -> None:
    config = tmp_path / "kill.yaml"
    kill = "{class_path: tests.processes.KillAt, init_args: {rank: 1, step: 5}}"
    config.write_text(f"trainer: {{devices: 2, callbacks: [{kill}]}}")
    fit = ["-m", "odenet_lightning", "fit", *SMALL, "--data.root", str(sample_root), "--config", str(config)]
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if launcher == "torchrun" else []
    project = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": project, "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, *run, *fit], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode != 0
    assert time.monotonic() - begin < 90
    left = subprocess.run(["pgrep", "-f", str(config)], capture_output=True, text=True, check=False).stdout
    assert not left.strip(), "no process is left behind"


@pytest.mark.slow
def test_memory_and_files_do_not_grow(tmp_path: Path, sample_root: Path) -> None:
    """3,000 steps with pictures and checkpoints on, against the first 500."""
    config = tmp_path / "watch.yaml"
    config.write_text("trainer: {callbacks: [{class_path: tests.processes.Watch, init_args: {steps: [500, 3000]}}]}")
    args = ["fit", "--data.source", "sample", "--data.root", str(sample_root), "--config", str(config)]
    args += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--model.net.channels", "2"]
    args += ["--trainer.max_steps", "3000", "--data.batch_size", "40", "--last.every_n_train_steps", "50"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "odenet_lightning", *args], cwd=tmp_path, env=environment, check=True)
    (first, first_files), (last, last_files) = (
        map(int, line.split()) for line in (tmp_path / "watch.txt").read_text().splitlines()
    )
    print(f"resident memory {first / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB; files {first_files}, {last_files}")
    assert last <= 1.02 * first
    assert last_files <= first_files


def test_interrupt_keeps_the_last_checkpoint(tmp_path: Path, sample_root: Path) -> None:
    """Ctrl-C in the third epoch."""
    config = tmp_path / "interrupt.yaml"
    config.write_text("trainer: {callbacks: [{class_path: tests.processes.KillAt, init_args: {step: 10, number: 2}}]}")
    args = ["fit", *SMALL, "--data.root", str(sample_root), "--config", str(config)]
    args += ["--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"]
    code = command(args, tmp_path)
    log = (tmp_path / "out.log").read_text()
    assert code in (1, 130, -signal.SIGINT), log
    assert (tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").is_file(), log
