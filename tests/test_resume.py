"""A run that is killed and resumed ends as one that was not."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from odenet_lightning import ClassifierModule, ODENet
from odenet_lightning.callbacks import Resume
from odenet_lightning.solvers import Euler
from tests.processes import command
from tests.training import SCALARS, curves, sgd, trainer_in

EPOCHS, BATCHES = 3, 11


def config(
    folder: Path, sample_root: Path, kill: dict[str, Any] | None = None, start: dict[str, float] | None = None
) -> str:
    """A short run with an adaptive solver, coarse at first, deformed digits and a checkpoint every four steps."""
    recent = {"every_n_train_steps": 4, "save_top_k": 1, "filename": "recent", "enable_version_counter": False}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": recent}]
    coarse = {"class_path": "odenet_lightning.solvers.Midpoint", "init_args": {"num_steps": 1}}
    arguments = {**(start or {"share": 1 / EPOCHS}), "solver": coarse}
    callbacks.append({"class_path": "odenet_lightning.callbacks.CoarseStart", "init_args": arguments})
    if kill:
        callbacks.append({"class_path": "tests.processes.KillAt", "init_args": kill})
    solver = {
        "class_path": "odenet_lightning.solvers.Dopri5",
        "init_args": {"rtol": 1e-5, "atol": 1e-5, "first_step": "warm"},
    }
    tree = {
        "model": {
            "net": {"class_path": "odenet_lightning.ODENet", "init_args": {"channels": 2, "solver": solver}},
        },
        "data": {
            "source": "sample",
            "root": str(sample_root),
            "batch_size": 16,
            "augment": {"class_path": "odenet_lightning.augment.Deform"},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": EPOCHS,
            "limit_train_batches": BATCHES,
            "limit_val_batches": 2,
            "log_every_n_steps": 3,
            "callbacks": callbacks,
        },
        "pictures": {"every_n_epochs": 0},
    }
    path = folder / ("kill.yaml" if kill else "run.yaml")
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints below, the one of the most steps last."""
    found = folder.rglob("*.ckpt")
    return sorted(found, key=lambda path: torch.load(path, weights_only=True)["global_step"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sample_root: Path) -> Path:
    """The folder of a run that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert command(["fit", "--config", config(folder, sample_root)], folder) == 0
    assert curves(folder / "lightning_logs" / "version_0").keys() == set(SCALARS), "or there was nothing to compare"
    return folder


MOMENTS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step", "on_validation_end")
CASES = [(random.Random(0).choice(MOMENTS), 3)] + [
    (random.Random(seed).choice(MOMENTS), random.Random(seed).randint(1, EPOCHS * BATCHES - 1)) for seed in range(6)
]


@pytest.mark.parametrize(("moment", "step"), CASES)
def test_killed_and_resumed_is_as_undisturbed(
    undisturbed: Path, tmp_path: Path, sample_root: Path, moment: str, step: int
) -> None:
    kill = {"step": step, "moment": moment}
    assert command(["fit", "--config", config(tmp_path, sample_root, kill)], tmp_path) == -9
    left = checkpoints(tmp_path)
    resume = ["--ckpt_path", str(left[-1])] if left else []
    assert command(["fit", "--config", config(tmp_path, sample_root), *resume], tmp_path) == 0
    expected, found = (torch.load(checkpoints(path)[-1], weights_only=True) for path in (undisturbed, tmp_path))
    assert found["global_step"] == expected["global_step"] == EPOCHS * BATCHES
    for name, weight in expected["state_dict"].items():
        assert torch.equal(weight, found["state_dict"][name]), name
    assert str(found["optimizer_states"]) == str(expected["optimizer_states"])
    best = [sorted(folder.rglob("best.ckpt"))[-1] for folder in (undisturbed, tmp_path)]
    steps = [torch.load(path, weights_only=True)["global_step"] for path in best]
    assert steps[0] == steps[1], "the best epoch is the same, before the kill or after it"
    logs = tmp_path / "lightning_logs"
    first = torch.load(left[-1], weights_only=True)["global_step"] if left else 0
    before, after = curves(logs / "version_0", before=first), curves(logs / "version_1")
    for tag, values in curves(undisturbed / "lightning_logs" / "version_0").items():
        assert before.get(tag, []) + after.get(tag, []) == values, tag


@pytest.mark.parametrize(
    ("setting", "value", "step"), [("accumulate_grad_batches", "4", 4), ("precision", "64-true", 5)]
)
def test_killed_under_other_settings(tmp_path: Path, sample_root: Path, setting: str, value: str, step: int) -> None:
    """After a second epoch's first step, while gradients are added up; with weights that float32 would round."""
    flags = [f"--trainer.{setting}", value, "--last.every_n_train_steps", "1", "--trainer.max_epochs", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert command(["fit", "--config", config(whole, sample_root), *flags], whole) == 0
    kill = {"step": step, "moment": "on_train_batch_end"}
    assert command(["fit", "--config", config(killed, sample_root, kill), *flags], killed) == -9
    first, second, undisturbed = (
        folder / "lightning_logs" / version / "checkpoints/last.ckpt"
        for folder, version in ((killed, "version_0"), (killed, "version_1"), (whole, "version_0"))
    )
    resume = ["--ckpt_path", str(first)]
    assert command(["fit", "--config", config(killed, sample_root), *flags, *resume], killed) == 0
    found, wanted = (torch.load(path, weights_only=True) for path in (second, undisturbed))
    assert found["global_step"] == wanted["global_step"]
    for name, weight in wanted["state_dict"].items():
        assert torch.equal(weight, found["state_dict"][name]), name


@pytest.mark.filterwarnings("default:a step cost")  # also in the forked process
@pytest.mark.parametrize("cut", ["budget", "max_steps"])
def test_a_run_that_ended_within_an_epoch_continues_with_the_rest_of_it(
    tmp_path: Path, sample_root: Path, cut: str
) -> None:
    """By its budget at the first step, or by its number of steps after a validation."""
    flags = ["--model.schedule", "constant", "--trainer.max_epochs", "2", "--trainer.val_check_interval", "2"]
    ends = {"budget": ["--nfe.budget", "1"], "max_steps": ["--trainer.max_steps", "4"]}[cut]
    ended, whole = tmp_path / "ended", tmp_path / "whole"
    fixed = {"epochs": 1.0}  # a share would end elsewhere in a longer run
    for folder, more in ((ended, ends), (whole, [])):
        folder.mkdir()
        assert command(["fit", "--config", config(folder, sample_root, start=fixed), *flags, *more], folder) == 0
    first = ended / "lightning_logs/version_0"
    done = torch.load(first / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert done == {"budget": 1, "max_steps": 4}[cut]
    resume = ["--ckpt_path", str(first / "checkpoints/last.ckpt")]
    assert command(["fit", "--config", config(ended, sample_root, start=fixed), *flags, *resume], ended) == 0
    second, undisturbed = ended / "lightning_logs/version_1", whole / "lightning_logs/version_0"
    found, wanted = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (second, undisturbed))
    assert found["global_step"] == wanted["global_step"] == 2 * BATCHES
    for name, weight in wanted["state_dict"].items():
        assert torch.equal(weight, found["state_dict"][name]), name
    after, expected = curves(second), curves(undisturbed)
    for tag in ("train/loss", "train/acc", "val/loss", "lr"):
        assert after[tag] == [(step, value) for step, value in expected[tag] if step >= done], tag


def fit_own_loader(folder: Path, epochs: int, *callbacks: Callback, workers: int = 0, **options: Any) -> Trainer:
    """Train on 40 made-up images of a user's own loader, which shuffles them."""
    torch.manual_seed(0)
    digits = TensorDataset(torch.randn(40, 1, 28, 28), torch.arange(40) % 10)
    train, val = (DataLoader(digits, 8, shuffle=shuffle, num_workers=workers) for shuffle in (True, False))
    module = ClassifierModule(ODENet(2, solver=Euler(num_steps=1)), sgd(0.01), "constant")
    trainer = trainer_in(folder, max_epochs=epochs, callbacks=[Resume(), *callbacks])
    trainer.fit(module, train, val, **options)
    return trainer


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loader_of_torchs_own_goes_on_after_an_epoch(tmp_path: Path, workers: int) -> None:
    """Its shuffling is drawn from the random state, in the same order of draws as without the interruption."""
    whole = fit_own_loader(tmp_path, 3, workers=workers)
    fit_own_loader(tmp_path, 1, workers=workers).save_checkpoint(tmp_path / "one.ckpt")
    resumed = fit_own_loader(tmp_path, 3, workers=workers, ckpt_path=tmp_path / "one.ckpt")
    expected, found = (trainer.lightning_module.state_dict() for trainer in (whole, resumed))
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name


@pytest.mark.parametrize("moment", ["on_train_batch_start", "on_before_optimizer_step"])
def test_a_checkpoint_from_within_a_step_is_refused(tmp_path: Path, moment: str) -> None:
    """Its batch is taken, but not trained on."""
    path, save = tmp_path / "within.ckpt", Callback()
    setattr(save, moment, lambda trainer, *_: trainer.save_checkpoint(path))
    fit_own_loader(tmp_path, 1, save)
    with pytest.raises(ValueError, match=r"saved within a step.* take one saved after a step"):
        fit_own_loader(tmp_path, 2, ckpt_path=path)
