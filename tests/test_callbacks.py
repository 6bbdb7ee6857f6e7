"""Lines for each epoch, hyperparameters, compiling, and a coarse start."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet
from odenet_lightning.callbacks import (
    CoarseStart,
    EpochLines,
    EvaluationCounts,
    TestReport,
    Throughput,
    flatten,
)
from odenet_lightning.gradients import Adjoint
from odenet_lightning.solvers import RK4, Bosh3, Euler
from tests.training import FewDigits, sgd, trainer_in


def test_epoch_lines_and_test_report(tmp_path: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = ClassifierModule(ODENet(2, solver=RK4(num_steps=1), gradient=Adjoint()), schedule="constant")
    data = MNISTDataModule(root=str(sample_root), source="sample", batch_size=100)
    callbacks = [EvaluationCounts(), Throughput(), EpochLines(), TestReport()]
    trainer = trainer_in(tmp_path, max_epochs=2, limit_train_batches=3, callbacks=callbacks)
    trainer.fit(module, data)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("epoch 1  step 3  loss ")
    assert second.startswith("epoch 2  step 6  loss ")
    for part in ("train ", "val ", "NFE forward 4.0", "backward 4.0", "images/s "):
        assert part in first
    trainer.test(module, data, verbose=False)
    assert "Accuracy on 500 test images of sample: " in capsys.readouterr().out


def test_a_cut_epochs_line_shows_no_other_epochs_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Cut(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any, **options: Any) -> None:
            trainer.should_stop = trainer.global_step == 6

    options = {
        "max_epochs": 2,
        "limit_val_batches": 0,
        "callbacks": [EvaluationCounts(), Throughput(), EpochLines(), Cut()],
    }
    trainer_in(tmp_path, **options).fit(ClassifierModule(ODENet(2), schedule="constant"), FewDigits())
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("epoch 1  step 4  loss ")
    assert second.startswith("epoch 2  step 6  train ")
    assert "NFE" in first
    assert "NFE" not in second
    assert "images/s" not in second


def test_an_epochs_line_shows_no_accuracy_that_nothing_has_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Smoothed(ClassifierModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)
            self.log("train/loss", loss)
            return loss

    options = {"max_epochs": 1, "limit_val_batches": 0, "callbacks": [EpochLines()]}
    trainer_in(tmp_path, log_every_n_steps=1, **options).fit(Smoothed(ODENet(2), schedule="constant"), FewDigits())
    line = capsys.readouterr().out.strip()
    assert line.startswith("epoch 1  step 4  loss ")
    assert "train" not in line


def test_steps_of_ones_own_that_count_nothing_end_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Own(ClassifierModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.log("val/own", F.cross_entropy(self(batch[0]), batch[1]))

        def test_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.log("test/own", F.cross_entropy(self(batch[0]), batch[1]))

    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[EpochLines(), TestReport()])
    module, data = Own(ODENet(2), schedule="constant"), FewDigits()
    trainer.fit(module, data)
    assert trainer.global_step == 4
    capsys.readouterr()
    trainer.test(module, data.val_dataloader(), verbose=False)
    assert capsys.readouterr().out.startswith("Tested on ")


def test_flatten_makes_plain_values() -> None:
    tree = {"net": {"class_path": "a.B", "init_args": {"channels": 6, "field": None}}, "_instantiator": "x", "lr": 0.1}
    assert flatten(tree) == {
        "net.class_path": "a.B",
        "net.init_args.channels": 6,
        "net.init_args.field": "None",
        "lr": 0.1,
    }


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Bosh3(0.1, 0.1, first_step="warm"), RK4(num_steps=2)], ids=["adaptive", "fixed"])
def test_compiled_run_equals_eager_and_compiles_once(tmp_path: Path, solver: Any) -> None:
    """After the first batch and the first validation nothing is compiled any more, though counts and times go on."""
    from torch._dynamo.utils import counters

    losses: dict[bool, list[float]] = {}
    for compile in (False, True):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        module = ClassifierModule(ODENet(solver=solver), sgd(0.01), "constant", compile=compile)
        graphs: list[int] = []
        seen: list[float] = []

        def note(outputs: Any, *_: Any, graphs: list[int] = graphs, seen: list[float] = seen) -> None:
            graphs.append(counters["stats"]["unique_graphs"])
            seen.append(float(outputs["loss"]))

        module.on_train_batch_end = note  # type: ignore[method-assign]
        keys = list(module.state_dict())
        trainer_in(tmp_path, max_epochs=3, num_sanity_val_steps=0).fit(module, FewDigits())
        losses[compile] = seen
        assert list(module.state_dict()) == keys
        if compile:
            assert graphs[0] > 0, "nothing was compiled"
            assert graphs[:4] == [graphs[0]] * 4
            assert graphs[4:] == [graphs[4]] * 8, "compiled anew after the first validation"
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_missing_compiler_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", fail)
    module = ClassifierModule(ODENet(2, solver=RK4(num_steps=1)), sgd(0.01), "constant", compile=True)
    with pytest.warns(UserWarning, match=r"no compiler available \(no C\+\+ compiler found\)"):
        trainer_in(tmp_path, max_epochs=1).fit(module, FewDigits())
    assert module.trainer.global_step == 4


@pytest.mark.parametrize(("epochs", "coarse_steps"), [(0, 0), (2, 8), (1.5, 6), (1.6, 7)])  # of 4 steps each
def test_coarse_start_trains_coarsely_and_validates_finely(tmp_path: Path, epochs: float, coarse_steps: int) -> None:
    seen: list[tuple[str, float]] = []

    class Spy(EvaluationCounts):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **options: Any) -> None:
            count = self.solves[-1].evaluations
            seen.append(("train", count))
            super().on_train_batch_end(trainer, pl_module, *args, **options)

        def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **options: Any) -> None:
            count = self.solves[-1].evaluations
            seen.append(("val", count))
            super().on_validation_batch_end(trainer, pl_module, *args, **options)

    own = RK4(num_steps=2)
    module = ClassifierModule(ODENet(2, solver=own), schedule="constant")
    callbacks = [CoarseStart(RK4(num_steps=1), epochs=epochs), Spy()]
    trainer_in(tmp_path, max_epochs=3, val_check_interval=2, callbacks=callbacks).fit(module, FewDigits())
    assert [count for part, count in seen if part == "train"] == [4] * coarse_steps + [8] * (12 - coarse_steps)
    assert {count for part, count in seen if part == "val"} == {8}
    assert module.net.ode_blocks[0].solver is own


def test_a_share_of_the_run_is_coarse(tmp_path: Path) -> None:
    """2 of 3 epochs of 4 steps: 8 steps of one evaluation each, then 4 of four."""
    module, counts = ClassifierModule(ODENet(2, solver=RK4(num_steps=1)), sgd(0.01), "constant"), []
    module.net.ode_blocks[0].register_solve_hook(lambda cost: counts.append((module.training, cost.evaluations)))
    callbacks = [CoarseStart(Euler(num_steps=1), share=2 / 3)]
    trainer_in(tmp_path, max_epochs=3, callbacks=callbacks, num_sanity_val_steps=0).fit(module, FewDigits())
    trained = [count for training, count in counts if training]
    assert trained == [1] * (2 * len(trained) // 3) + [4] * (len(trained) // 3)
    assert {count for training, count in counts if not training} <= {4}


@pytest.mark.parametrize(("epochs", "share"), [(None, None), (1, 0.5), (None, 1.5), (None, -0.1)])
def test_coarse_start_takes_one_length(epochs: float | None, share: float | None) -> None:
    with pytest.raises(ValueError, match="share"):
        CoarseStart(RK4(num_steps=1), epochs, share)


@pytest.mark.parametrize("epochs", [-1, float("nan"), float("inf")])
def test_coarse_start_refuses_impossible_epochs(epochs: float) -> None:
    with pytest.raises(ValueError, match="epochs"):
        CoarseStart(RK4(num_steps=1), epochs=epochs)
