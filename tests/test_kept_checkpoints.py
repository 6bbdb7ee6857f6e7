"""Which checkpoint is the best, over resumed and divergent runs."""

import shutil
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from odenet_lightning.checkpoints import (
    BestCheckpoint,
    LastCheckpoint,
    WholeCheckpointIO,
)
from odenet_lightning.cli import main
from odenet_lightning.divergence import DivergenceError
from tests.fits import FIT, SHORT, content, stored


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
