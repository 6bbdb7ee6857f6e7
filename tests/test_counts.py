"""Evaluations of the field and images per second as curves, and the budget."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from odenet_lightning import ClassifierModule, ODENet, ResNet
from odenet_lightning.callbacks import (
    Evaluation,
    EvaluationCounts,
    IsODE,
    Throughput,
)
from odenet_lightning.gradients import Checkpoint
from odenet_lightning.solvers import RK4, Dopri5, Euler, Midpoint
from odenet_lightning.trainer import is_shown, is_written
from tests.training import FewDigits, sgd, trainer_in


def test_warns_at_half_the_budget_and_stops_beyond_it(tmp_path: Path) -> None:
    module = ClassifierModule(ODENet(2, solver=RK4(num_steps=3)), sgd(0.01), schedule="constant")
    with pytest.warns(UserWarning, match="12 evaluations of the field; the run ends beyond 20"):
        trainer_in(tmp_path, max_epochs=1, callbacks=[EvaluationCounts(budget=20)]).fit(module, FewDigits())
    assert module.trainer.global_step == 4
    with pytest.warns(UserWarning, match=r"more evaluations than the budget of 10 \(12 here\): ending the run"):
        trainer_in(tmp_path, max_epochs=1, callbacks=[EvaluationCounts(budget=10)]).fit(module, FewDigits())
    assert module.trainer.global_step == 1


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_nfe_is_the_average_of_the_steps_since_it_was_last_written(tmp_path: Path, every: int) -> None:
    """Four steps of 2, 4, 6 and 8 evaluations; the last one of an epoch is always shown."""
    module = ClassifierModule(ODENet(2, solver=Midpoint(num_steps=1)), sgd(0.01), schedule="constant")
    shown: list[float] = []

    class Finer(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            block.solver = Midpoint(num_steps=trainer.global_step + 1)

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if is_shown(trainer):
                shown.append(float(trainer.callback_metrics["nfe/forward"]))

    (block,) = module.net.ode_blocks
    callbacks = [EvaluationCounts(), Finer()]
    trainer_in(tmp_path, max_epochs=1, callbacks=callbacks, log_every_n_steps=every).fit(module, FewDigits())
    assert shown == {1: [2, 4, 6, 8], 2: [3, 7], 3: [4, 8], 100: [5]}[every]


def written_in(logger: CSVLogger, name: str) -> list[float]:
    """The values of a curve."""
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(
    ("batches", "accumulated", "every", "expected"),
    [
        (20, 1, 15, [8, 145 / 15]),  # of batches 1 to 15, then of 16 to 20 and the second epoch's 1 to 10
        (20, 4, 5, [10.5, 10.5]),
        (10, 4, 2, [4.5, 29 / 6, 7.5]),  # an epoch's last step takes two batches
        (4, 1, 3, [2, 7 / 3]),
    ],
)
def test_every_batch_is_in_one_average_of_the_curve(
    tmp_path: Path, batches: int, accumulated: int, every: int, expected: list[float]
) -> None:
    """Two epochs; a batch costs as many evaluations as its number in the epoch says."""

    class Vary(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.net.block.solver = Euler(num_steps=batch_idx + 1)

        def on_train_batch_end(self, trainer: Trainer, *args: Any, **options: Any) -> None:
            written.append(is_written(trainer))

    written: list[bool] = []
    logger = CSVLogger(tmp_path)
    trainer = trainer_in(
        tmp_path,
        max_epochs=2,
        accumulate_grad_batches=accumulated,
        log_every_n_steps=every,
        limit_val_batches=0,
        logger=logger,
        callbacks=[Vary(), EvaluationCounts()],
    )
    trainer.fit(ClassifierModule(ODENet(2, solver=Euler(num_steps=1)), schedule="constant"), FewDigits(batches, 2))
    assert written_in(logger, "nfe/forward") == pytest.approx(expected)
    assert len(written_in(logger, "train/loss")) == sum(written) == len(expected)


def test_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="budget"):
        EvaluationCounts(budget=0)


def test_the_last_step_of_a_run_is_logged(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_steps=3, callbacks=[EvaluationCounts()])
    trainer.fit(ClassifierModule(ODENet(2), sgd(0.01), "constant"), FewDigits())
    assert {"train/loss", "train/acc", "nfe/forward"} <= set(trainer.callback_metrics)


class SlowLoader:
    """Batches of 8 images that take a twentieth of a second to load, or half a second to validate on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(4):
            time.sleep(self.seconds)
            yield torch.zeros(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64)


def test_throughput_counts_loading_and_not_validation(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[Throughput()],
        val_check_interval=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        log_every_n_steps=4,
    )
    trainer.fit(ClassifierModule(ResNet(2, 0)), SlowLoader(0.05), SlowLoader(0.25))  # type: ignore[arg-type]
    rate = float(trainer.callback_metrics["perf/images_per_second"])
    assert 25 < rate < 160, "32 images in a fifth of a second and a little more; validation takes two seconds"


def test_throughput_is_of_all_batches_since_it_was_last_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 8 images takes its number in the epoch, in seconds; what lies between epochs takes no time."""
    now = 0.0

    class Tick(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            nonlocal now
            now += batch_idx + 1

        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            nonlocal now
            now += 1_000

    monkeypatch.setattr("odenet_lightning.callbacks.throughput.time.perf_counter", lambda: now)
    logger = CSVLogger(tmp_path)
    options = {"max_epochs": 2, "log_every_n_steps": 3, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    trainer = trainer_in(tmp_path, logger=logger, callbacks=[Throughput(), Tick()], **options)
    trainer.fit(ClassifierModule(ResNet(2, 0), schedule="constant"), FewDigits(8))
    # of six batches, and of the last two and the second epoch's first four
    assert written_in(logger, "perf/images_per_second") == pytest.approx([48 / 21, 48 / 25])


def test_slots_do_not_hinder_evaluation_of_each_image(tmp_path: Path) -> None:
    """Which solves each image by itself, as slots cannot, and asks for a gradient."""
    module = ClassifierModule(ODENet(channels=2, solver=Dopri5(0.1, 0.1), gradient=Checkpoint(slots=2)))
    is_ode = IsODE(images=8)
    trainer_in(tmp_path, callbacks=[Evaluation(), is_ode]).test(module, FewDigits(1), verbose=False)
    assert is_ode.certificate is not None
    assert module.net.ode_blocks[0].gradient == Checkpoint(slots=2), "as before"
