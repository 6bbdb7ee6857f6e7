"""The shipped launch script under a real SLURM: preempted, requeued, and the same in the end."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import slurm
from tests.training import curves

pytestmark = pytest.mark.slurm
PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    reason = slurm.available()
    if reason:
        pytest.skip(reason)
    with slurm.cluster(tmp_path_factory.mktemp("slurm")):
        yield


def submit(folder: Path, sample_root: Path) -> str:
    """Submit the script for two CPU tasks; returns the job's number."""
    shutil.copytree(PROJECT / "configs", folder / "configs", dirs_exist_ok=True)
    options = [
        "--parsable",
        "--gres=none",
        "--cpus-per-task=1",
        f"--export=ALL,PATH={Path(sys.executable).parent}:/usr/bin:/bin",
    ]
    run = ["--trainer.accelerator", "cpu", "--data.source", "sample", "--data.root", str(sample_root)]
    run += ["--trainer.max_epochs", "6", "--pictures.every_n_epochs", "0", "--data.batch_size", "32"]
    run += ["--trainer.log_every_n_steps", "10", "--data.augment", "Deform"]
    args = ["sbatch", *options, "configs/slurm.sbatch", *run]
    return subprocess.run(args, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def finish(job: str, folder: Path, seconds: float = 300) -> str:
    """Wait for a job's end; returns its log."""
    log = folder / f"odenet-{job}.log"
    try:
        slurm.wait_for("JobState=COMPLETED", seconds, "scontrol", "show", "job", job)
    except TimeoutError as e:
        raise TimeoutError(f"{e}\n{log.read_text()[-2_000:] if log.exists() else 'no log'}") from None
    return log.read_text()


def test_preempted_and_requeued_is_as_undisturbed(cluster: None, tmp_path: Path, sample_root: Path) -> None:
    job = submit(tmp_path, sample_root)
    log = tmp_path / f"odenet-{job}.log"
    end = time.monotonic() + 120
    while not (log.exists() and "epoch 2 " in log.read_text()):
        assert time.monotonic() < end, log.read_text() if log.exists() else "it never started"
        time.sleep(0.1)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    slurm.wait_for("Restarts=1", 60, "scontrol", "show", "job", job)
    text = finish(job, tmp_path)
    assert "preempted at step" in text
    assert text.count("training ODENet") == 2, "one process of the two speaks, once a start"
    other = submit(tmp_path, sample_root)
    undisturbed = finish(other, tmp_path)
    assert undisturbed.count("training ODENet") == 1
    logs = [tmp_path / "runs" / number / "lightning_logs" for number in (job, other)]
    assert [[path.name for path in folder.iterdir()] for folder in logs] == [[job], [other]], "one version each"
    found, expected = (
        torch.load(folder / number / "checkpoints" / "last.ckpt", weights_only=True)
        for folder, number in zip(logs, (job, other), strict=True)
    )
    assert found["global_step"] == expected["global_step"]
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    # TensorBoard forgets the steps that were taken twice
    assert curves(logs[0] / job) == curves(logs[1] / other)
