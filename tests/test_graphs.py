"""Recorded training steps equal usual ones, by a recorder for the CPU that calls the recorded function again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch.optim import Optimizer

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet, graphs
from odenet_lightning.augment import Deform
from odenet_lightning.callbacks import CoarseStart, EvaluationCounts, Resume, Throughput
from odenet_lightning.graphs import Rates
from odenet_lightning.recording import REHEARSALS
from odenet_lightning.solvers import Euler, Midpoint
from tests.graph_runs import adamw, distance, muon, run


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_200_recorded_steps_equal_200_usual_ones(
    tmp_path: Path, calls: list[str], optimizer: Callable[..., Optimizer]
) -> None:
    """Under one-cycle, which swings the first beta; with clipping."""
    options = {"optimizer": optimizer, "batches": 100, "max_epochs": 2, "gradient_clip_val": 1.0}
    usual, _ = run(tmp_path, False, **options)
    assert not calls
    recorded, trainer = run(tmp_path, True, **options)
    assert calls == ["rehearsed"] * REHEARSALS + ["recorded"] + ["repeated"] * (200 - REHEARSALS)
    assert trainer.global_step == 200
    assert distance(recorded, usual) < 1e-7


@pytest.mark.parametrize("name", ["lr", "betas"])
def test_a_rate_recorded_as_a_number_would_show(
    tmp_path: Path, calls: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: in a tenth of its steps a rate that does not follow the schedule leads elsewhere."""
    in_groups = Rates.in_groups

    @contextmanager
    def all_but_one(self: Rates) -> Iterator[None]:
        number = self.optimizer.param_groups[0][name]
        with in_groups(self):
            self.optimizer.param_groups[0][name] = number
            yield

    usual, _ = run(tmp_path, False, batches=20)
    monkeypatch.setattr(Rates, "in_groups", all_but_one)
    recorded, _ = run(tmp_path, True, batches=20)
    assert distance(recorded, usual) > 1e-4


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_augmentation_is_recorded_with_the_step(
    tmp_path: Path, sample_root: Path, calls: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And draws the same random numbers, in float32 at least; only the step sees the pixels."""
    seen: list[torch.dtype] = []
    take = graphs.StepGraphs.take
    monkeypatch.setattr(graphs.StepGraphs, "take", lambda self, batch: seen.append(batch[0].dtype) or take(self, batch))

    def trained(cuda_graph: bool) -> tuple[ClassifierModule, float]:
        data = MNISTDataModule(str(sample_root), "sample", batch_size=8, augment=Deform(elastic=0.7))
        options = {"limit_train_batches": 10, "limit_val_batches": 2, "precision": precision, "data": data}
        module, trainer = run(tmp_path, cuda_graph, **options)
        return module, float(trainer.callback_metrics["val/loss"])

    usual, loss = trained(False)
    assert not seen
    recorded, recorded_loss = trained(True)
    assert calls.count("repeated") == len(seen) - REHEARSALS == 7
    assert set(seen) == {torch.uint8}
    assert distance(recorded, usual) < 1e-5
    assert recorded_loss == pytest.approx(loss, rel=1e-4)


def test_bf16_mixed_casts_the_same_operations(tmp_path: Path, calls: list[str]) -> None:
    """The forward pass's, and neither the backward pass's nor the optimiser's."""
    options = {"precision": "bf16-mixed", "optimizer": muon}
    usual, _ = run(tmp_path, False, **options)
    recorded, _ = run(tmp_path, True, **options)
    assert "repeated" in calls
    assert distance(recorded, usual) < 1e-5


def test_scalars_are_those_of_usual_steps(tmp_path: Path, calls: list[str]) -> None:
    shown = []
    for cuda_graph in (False, True):
        callbacks = [EvaluationCounts(), Throughput()]
        _, trainer = run(tmp_path, cuda_graph, callbacks=callbacks, log_every_n_steps=3, limit_val_batches=1)
        shown.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    usual, recorded = shown
    assert recorded.pop("perf/images_per_second") > 0
    assert usual.pop("perf/images_per_second") > 0
    assert usual["nfe/forward"] == 2
    assert {"train/loss", "train/acc", "val/acc", "lr", "solver/accepted"} <= set(usual)
    assert recorded == pytest.approx(usual, rel=1e-9)


def test_each_solver_has_a_graph_of_its_own(tmp_path: Path, calls: list[str]) -> None:
    """And each counts its own evaluations: a batch of the coarse solver's one, then of the network's four."""
    shown: list[float] = []

    class Spy(EvaluationCounts):
        def on_train_batch_end(self, trainer: Trainer, *args: Any, **options: Any) -> None:
            super().on_train_batch_end(trainer, *args, **options)
            shown.append(self.forward[-1] if self.forward else float(trainer.callback_metrics["nfe/forward"]))

    def both(cuda_graph: bool) -> ClassifierModule:
        shown.clear()
        coarse = CoarseStart(Euler(num_steps=1), epochs=1)
        options = {"max_epochs": 2, "callbacks": [coarse, Spy()], "log_every_n_steps": 1}
        return run(tmp_path, cuda_graph, lambda: ODENet(2, solver=Midpoint(num_steps=2)), **options)[0]

    usual = both(False)
    recorded = both(True)
    assert shown == [1.0] * 8 + [4.0] * 8
    assert calls.count("recorded") == 2
    assert distance(recorded, usual) < 1e-10


def test_a_changed_setting_of_the_optimiser_is_not_ignored(tmp_path: Path, calls: list[str]) -> None:
    class Strip(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 6:
                trainer.optimizers[0].param_groups[0]["weight_decay"] = 10.0

    usual, _ = run(tmp_path, False, callbacks=[Strip()])
    recorded, _ = run(tmp_path, True, callbacks=[Strip()])
    assert distance(recorded, usual) < 1e-10


@pytest.mark.parametrize("optimizer", [adamw, muon])
@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (True, True)])
def test_runs_resume_one_another(
    tmp_path: Path, calls: list[str], first: bool, second: bool, optimizer: Callable[..., Optimizer]
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "batches": 6}

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
            trainer.should_stop = True

    whole, _ = run(tmp_path, False, max_epochs=2, **options)
    run(tmp_path, first, max_epochs=2, callbacks=[Resume(), Stop()], **options)
    options |= {"fit": {"ckpt_path": tmp_path / "half.ckpt"}, "callbacks": [Resume()]}
    resumed, trainer = run(tmp_path, second, max_epochs=2, **options)
    assert trainer.global_step == 12
    assert distance(resumed, whole) < 1e-6  # a resumed run begins in float32 whatever its precision
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert all(type(group["lr"]) is float and type(group["betas"][0]) is float for group in saved)
    assert not any(group.get("capturable") for group in saved)
