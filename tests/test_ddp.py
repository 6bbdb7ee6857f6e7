"""Several processes train as one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch.optim import SGD

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet
from odenet_lightning.callbacks import EvaluationCounts, Resume, TestReport, classifier
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.regularizers import Kinetic, Regularizer
from odenet_lightning.solvers import Dopri5, Midpoint, Solver

STEPS = 50


class Recorder(Callback):
    """Writes each process's losses, warm steps and evaluations to a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[float, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows.append((float(outputs["loss"]), self.warm))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        (block,) = classifier(pl_module).net.ode_blocks
        self.warm = block.warm_step or 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.rows, self.folder / f"rank{trainer.global_rank}.pt")


def fit(
    folder: Path,
    root: Path,
    processes: int,
    solver: Solver,
    gradient: Gradient,
    double: bool = False,
    regularizer: Regularizer | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, float], list[list[tuple[float, float]]]]:
    """Train for 50 steps (20 in float64) of 32 images over so many processes: weights, metrics, records."""
    steps = 20 if double else STEPS
    folder.mkdir()
    # of seeds 3 to 7, 3 is the one where rounding turns a relu on or off, which takes the weights 4e-5 apart
    seed_everything(4, verbose=False)
    net = ODENet(channels=3, solver=solver, gradient=gradient)
    # AdamW divides by the gradient's size, so that it lets rounding errors grow: the post's recipe for float32
    module = (
        ClassifierModule(net, regularizer=regularizer)
        if double
        else ClassifierModule(net, lambda p: SGD(p, lr=0.001, momentum=0.9), schedule="constant")
    )
    data = MNISTDataModule(root=str(root), source="sample", batch_size=32 // processes, augment=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        precision="64-true" if double else "32-true",
        max_steps=steps,
        val_check_interval=steps,
        limit_train_batches=steps,
        callbacks=[Resume(), EvaluationCounts(), Recorder(folder)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    records = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]
    return module.state_dict(), metrics, records


def distance(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative, over all weights."""
    found, wanted = (torch.cat([value.flatten().double() for value in state.values()]) for state in (weights, expected))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("double", [False, True], ids=["float32-post", "float64-AdamW"])
@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint(), Adjoint()], ids=lambda g: type(g).__name__)
def test_two_processes_equal_one(tmp_path: Path, sample_root: Path, gradient: Gradient, double: bool) -> None:
    # what Adjoint recomputes backwards makes more of rounding
    most = 1e-9 if double else 1e-4 if isinstance(gradient, Adjoint) else 1e-5
    solver = Midpoint(num_steps=2)
    if isinstance(gradient, Adjoint) and not double:
        gradient = Adjoint(normalise=False)  # the post's: dividing by a size rounds, which turns a relu more often
    one, one_metrics, (losses,) = fit(tmp_path / "one", sample_root, 1, solver, gradient, double)
    two, two_metrics, records = fit(tmp_path / "two", sample_root, 2, solver, gradient, double)
    for step, (expected, _) in enumerate(losses):
        mean = (records[0][step][0] + records[1][step][0]) / 2
        assert mean == pytest.approx(expected, rel=most), f"loss at step {step}"
    assert distance(two, one) < max(most, 1e-7), "Lightning hands the weights back as float32"
    for name in ("train/acc", "train/loss", "val/acc", "val/loss", "nfe/forward", "nfe/val_forward"):
        assert two_metrics[name] == pytest.approx(one_metrics[name], rel=max(most, 1e-5)), name
    assert one_metrics["val/acc"] > (0.2 if double else 0.3), "it has learned something"


def test_two_processes_share_a_regularizer(tmp_path: Path, sample_root: Path) -> None:
    solver, kinetic = Midpoint(num_steps=2), Kinetic(1.0)
    (one, one_metrics, _), (two, two_metrics, _) = (
        fit(tmp_path / f"{n}", sample_root, n, solver, Checkpoint(), double=True, regularizer=kinetic) for n in (1, 2)
    )
    assert distance(two, one) < 1e-7, "Lightning hands the weights back as float32"
    for name in ("train/loss", "reg/kinetic"):
        assert two_metrics[name] == pytest.approx(one_metrics[name], rel=1e-9), name


def test_adaptive_processes_agree_to_the_tolerance(tmp_path: Path, sample_root: Path) -> None:
    """Each process controls the steps of its own images, so rounding is not the measure; the first step is shared."""
    solver = Dopri5(rtol=1e-5, atol=1e-5, first_step="warm")
    one, _, _ = fit(tmp_path / "one", sample_root, 1, solver, Backprop())
    two, _, records = fit(tmp_path / "two", sample_root, 2, solver, Backprop())
    assert [warm for _, warm in records[0]] == [warm for _, warm in records[1]]
    assert len({warm for _, warm in records[0]}) > 5, "it moves"
    assert distance(two, one) < 1e-3


def test_no_test_image_is_counted_twice(tmp_path: Path, sample_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """500 images over 3 processes: the shares differ by one image."""
    results = []
    for processes in (1, 3):
        seed_everything(3, verbose=False)
        trainer = Trainer(
            accelerator="cpu",
            devices=processes,
            strategy="ddp_fork" if processes > 1 else "auto",
            callbacks=[TestReport()],
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
        )
        data = MNISTDataModule(root=str(sample_root), source="sample", batch_size=64)
        net = ODENet(channels=2, solver=Midpoint(num_steps=1))  # an adaptive one controls its steps by the batch
        trainer.test(ClassifierModule(net), data, verbose=False)
        results.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        assert "Accuracy on 500 test images" in capfd.readouterr().out
    assert results[0] == pytest.approx(results[1], rel=1e-5)
