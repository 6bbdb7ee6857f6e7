"""Killed or preempted after any step, and resumed: the weights of an undisturbed run, each scalar once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.processes import command
from tests.training import curves

STEPS = 12  # an epoch
LIMITS = {"steps": {"max_steps": 2 * STEPS}, "epochs": {"max_epochs": 2}}
LIMITS["both"] = LIMITS["steps"] | LIMITS["epochs"]
MOMENTS = ("on_train_batch_end", "on_validation_start", "on_validation_end", "on_before_optimizer_step")
JOB = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "x"}
SIGKILL, SIGUSR1 = 9, 10


def config(folder: Path, sample_root: Path, limit: str, kill: dict[str, Any] | None = None) -> list[str]:
    """A checkpoint every step, scalars every second, a validation every third."""
    callbacks = [{"class_path": "tests.processes.KillAt", "init_args": kill}] if kill else []
    net = {"class_path": "odenet_lightning.ODENet", "init_args": {"channels": 2}}
    solver = {"rtol": 1e-3, "atol": 1e-3, "first_step": "warm"}
    net["init_args"]["solver"] = {"class_path": "odenet_lightning.solvers.Bosh3", "init_args": solver}
    trainer = {"accelerator": "cpu", "devices": 1, "limit_train_batches": STEPS, "limit_val_batches": 2}
    trainer |= {"val_check_interval": 3, "log_every_n_steps": 2, "num_sanity_val_steps": 0, "callbacks": callbacks}
    tree = {
        "model": {"net": net},
        "data": {"source": "sample", "root": str(sample_root), "batch_size": 4},
        "trainer": trainer | LIMITS[limit],
        "last": {"every_n_train_steps": 1},
        "pictures": {"every_n_epochs": 0},
    }
    path = folder / f"{'kill' if kill else 'run'}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return ["fit", "--config", str(path)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sample_root: Path) -> Callable[[str], Path]:
    """The folder of a run under a limit that nobody disturbs, made once."""

    @cache
    def folder_of(limit: str) -> Path:
        folder = tmp_path_factory.mktemp(limit)
        assert command(config(folder, sample_root, limit), folder) == 0
        assert max(step for step, _ in curves(folder / "lightning_logs/version_0")["val/acc"]) == 2 * STEPS - 1
        return folder

    return folder_of


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def compare(found: Path, expected: Path, scalars: dict[str, Any]) -> None:
    """Weights, optimiser and curves."""
    ended, wanted = last(found), last(expected)
    assert ended["global_step"] == wanted["global_step"] == 2 * STEPS
    for name, weight in wanted["state_dict"].items():
        assert torch.equal(weight, ended["state_dict"][name]), name
    assert str(ended["optimizer_states"]) == str(wanted["optimizer_states"])
    for tag, values in curves(expected).items():
        assert scalars[tag] == values, tag


def killed(limit: str, whole: Path, folder: Path, sample_root: Path, step: int) -> None:
    kill = {"step": step, "moment": MOMENTS[step % len(MOMENTS)]}
    assert command(config(folder, sample_root, limit, kill), folder) == -SIGKILL
    first, second = (folder / "lightning_logs" / f"version_{number}" for number in (0, 1))
    kept = first / "checkpoints" / "last.ckpt"
    done = last(first)["global_step"] if kept.exists() else 0
    assert done >= step - 3, "the last validation at the latest"
    resume = ["--ckpt_path", str(kept)] if done else []
    assert command([*config(folder, sample_root, limit), *resume], folder) == 0
    before, after = curves(first, before=done), curves(second)
    tags = before.keys() | after.keys()
    compare(second, whole / "lightning_logs/version_0", {tag: before.get(tag, []) + after.get(tag, []) for tag in tags})
    assert (folder / "out.log").read_text().count("epoch 1  step") == 1, "no empty epoch"


def preempted(
    limit: str, whole: Path, folder: Path, sample_root: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "scontrol").write_text("#!/bin/sh\nexit 0\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    kill = {"step": step, "number": SIGUSR1, "moment": ("on_train_batch_end", "on_train_batch_start")[step % 2]}
    assert command(config(folder, sample_root, limit, kill), folder) == 0
    run = folder / "lightning_logs" / JOB["SLURM_JOB_ID"]
    assert "preempted at step" in (folder / "out.log").read_text() or step >= 2 * STEPS - 1
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    if last(run)["global_step"] < 2 * STEPS:
        assert command(config(folder, sample_root, limit), folder) == 0
    compare(run, whole / "lightning_logs/version_0", curves(run))


# first, after a validation, between two scalars, before and at an epoch's end, at the next one's start
WORST = {"both": (1, 3, 11, 12, 13), "steps": (3, 12), "epochs": (3, 12)}
CASES = [
    pytest.param(limit, step, marks=() if step in WORST[limit] else pytest.mark.slow)
    for limit in LIMITS
    for step in range(1, 2 * STEPS + 1)
]
each_case = pytest.mark.parametrize(("limit", "step"), CASES)


@each_case
def test_killed(limit: str, step: int, undisturbed: Callable[[str], Path], tmp_path: Path, sample_root: Path) -> None:
    killed(limit, undisturbed(limit), tmp_path, sample_root, step)


@pytest.mark.filterwarnings("default:preempted")  # also in the forked process
@each_case
def test_preempted(
    limit: str,
    step: int,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
    sample_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preempted(limit, undisturbed(limit), tmp_path, sample_root, step, monkeypatch)
