import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet, ResNet
from odenet_lightning.callbacks import (
    CoarseStart,
    EpochLines,
    Evaluation,
    EvaluationCounts,
    IsODE,
    Pictures,
    TestReport,
    Throughput,
    flatten,
)
from odenet_lightning.cli import main
from odenet_lightning.fields import Field
from odenet_lightning.gradients import Adjoint, Checkpoint
from odenet_lightning.skipping import MAX_SKIPS
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Euler, Midpoint, SolverError
from odenet_lightning.trainer import is_shown, is_written
from tests.problems import Exploding
from tests.training import FewDigits, sgd, trainer_in

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]


class FailsSometimes(Field):
    """A harmless field that is not finite on every batch whose number is in `bad`, counting training batches."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))
        self.bad, self.batch = bad, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.weight * y * (float("nan") if self.training and self.batch in self.bad else 1.0)


def numbered(module: ClassifierModule, field: FailsSometimes) -> ClassifierModule:
    """Tell the field the number of the batch."""

    def tell(batch: Any, batch_idx: int) -> None:
        field.batch = module.trainer.fit_loop.epoch_loop.total_batch_idx

    module.on_train_batch_start = tell  # type: ignore[method-assign]
    return module


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


@pytest.mark.parametrize("gradient", [None, Adjoint()], ids=["backprop", "adjoint"])
def test_failed_solve_ends_the_run(tmp_path: Path, gradient: Adjoint | None) -> None:
    net = ODENet(2, solver=Dopri5(1e-3, 1e-3), gradient=gradient, field=Exploding())
    with pytest.raises(SolverError, match=r"t = .* h = .*rtol = 0.001.*evaluations so far.*try looser"):
        trainer_in(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(ClassifierModule(net), FewDigits())


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
def test_skipped_batches_leave_the_weights_and_are_counted(tmp_path: Path) -> None:
    field = FailsSometimes({1, 2})
    module = numbered(
        ClassifierModule(ODENet(2, solver=Bosh3(0.1, 0.1), field=field), sgd(0.01), "constant", on_solver_error="skip"),
        field,
    )
    weights: list[Tensor] = []
    module.on_train_batch_end = lambda *_: weights.append(field.weight.detach().clone())  # type: ignore[method-assign]
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[EvaluationCounts()])
    trainer.fit(module, FewDigits())
    assert module.skips.total == 2
    assert weights[0] == weights[1] == weights[2] != weights[3]
    assert trainer.callback_metrics["solver/skipped"] == 2


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
def test_scalars_go_on_after_a_skipped_batch(tmp_path: Path) -> None:
    field = FailsSometimes({0})
    module = numbered(
        ClassifierModule(ODENet(2, solver=Bosh3(0.1, 0.1), field=field), sgd(0.01), "constant", on_solver_error="skip"),
        field,
    )
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    options = {"max_epochs": 1, "log_every_n_steps": 2, "limit_val_batches": 0, "callbacks": [EvaluationCounts()]}
    trainer_in(tmp_path, logger=logger, **options).fit(module, FewDigits(batches=6))
    events = EventAccumulator(logger.log_dir).Reload()
    for name in ("train/loss", "lr", "nfe/forward"):
        assert [event.step for event in events.Scalars(name)] == [1, 3, 5]


def test_the_last_step_of_a_run_is_logged(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_steps=3, callbacks=[EvaluationCounts()])
    trainer.fit(ClassifierModule(ODENet(2), sgd(0.01), "constant"), FewDigits())
    assert {"train/loss", "train/acc", "nfe/forward"} <= set(trainer.callback_metrics)


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
def test_too_many_skips_in_a_row_end_the_run(tmp_path: Path) -> None:
    field = FailsSometimes(set(range(3, 100)))
    module = numbered(
        ClassifierModule(ODENet(2, solver=Bosh3(0.1, 0.1), field=field), sgd(0.01), "constant", on_solver_error="skip"),
        field,
    )
    with pytest.raises(SolverError, match=f"{MAX_SKIPS + 1} batches in a row"):
        trainer_in(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, FewDigits(batches=40))
    assert module.skips.total == MAX_SKIPS + 1


def test_failed_adjoint_solve_is_skipped_too(tmp_path: Path) -> None:
    """The way back alone fails: its budget of evaluations is too small for its tolerance."""
    net = ODENet(2, solver=Dopri5(0.1, 0.1), gradient=Adjoint(rtol=1e-6, atol=1e-6), max_nfe=30)
    module = ClassifierModule(net, sgd(0.01), "constant", on_solver_error="skip")
    before = [p.detach().clone() for p in module.parameters()]
    trainer_in(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, FewDigits())
    assert module.skips.total == 4
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
@pytest.mark.parametrize(("bad", "used"), [(0, [1, 2, 3]), (1, [2, 3]), (3, [])])
def test_a_skipped_batch_takes_the_accumulated_gradients_along(tmp_path: Path, bad: int, used: list[int]) -> None:
    """A step of four batches: the gradient is that of the batches after the bad one."""
    data, expected = FewDigits(), FailsSometimes(set())
    torch.manual_seed(0)
    bare = ODENet(2, solver=Bosh3(0.1, 0.1), field=expected)
    for number in used:
        (F.cross_entropy(bare(data.batches[number][0]), data.batches[number][1]) / 4).backward()
    field = FailsSometimes({bad})
    torch.manual_seed(0)
    net = ODENet(2, solver=Bosh3(0.1, 0.1), field=field)
    module = numbered(ClassifierModule(net, sgd(0.01), "constant", on_solver_error="skip"), field)
    gradients: list[Tensor | None] = []
    module.on_before_optimizer_step = lambda _: gradients.append(field.weight.grad)  # type: ignore[method-assign]
    trainer_in(tmp_path, max_epochs=1, accumulate_grad_batches=4, limit_val_batches=0).fit(module, data)
    assert module.skips.total == 1
    (found,) = gradients
    wanted = expected.weight.grad
    if found is None or wanted is None:
        assert found is wanted
    else:
        assert torch.allclose(found, wanted, rtol=1e-5)


def test_skipping_is_refused_where_a_loss_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler of 16-mixed counts the batches that were left out as its own."""
    monkeypatch.setattr(Trainer, "precision", "16-mixed")
    module = ClassifierModule(ODENet(2), on_solver_error="skip")
    with pytest.raises(ValueError, match="does not go with 16-mixed: use bf16-mixed"):
        trainer_in(tmp_path, max_epochs=1).fit(module, FewDigits())


def test_failure_names_the_checkpoint_that_is_left(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation ends an epoch well; then the solve is given a budget that it cannot keep."""
    original = ClassifierModule.on_validation_end

    def squeeze(self: ClassifierModule) -> None:
        original(self)
        if not self.trainer.sanity_checking and self.trainer.current_epoch == 1:
            self.net.ode_blocks[0].max_nfe = 2

    monkeypatch.setattr(ClassifierModule, "on_validation_end", squeeze)
    few = ["--trainer.limit_train_batches", "3", "--trainer.max_epochs", "4", "--pictures.every_n_epochs", "0"]
    with pytest.raises(SystemExit):
        main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *few, *CPU])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "max_nfe = 2" in error
    kept = error.rsplit("the best checkpoint so far is ", 1)[1]
    assert "state_dict" in torch.load(kept, weights_only=True)


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


def test_pictures_show_what_was_wrong(tmp_path: Path) -> None:
    """With weights that always answer 3, every other digit is a mistake."""
    module = ClassifierModule(ODENet(2, solver=RK4(num_steps=1)), sgd(1e-9), schedule="constant")
    with torch.no_grad():
        module.net.get_submodule("head.fc").weight.zero_()  # type: ignore[union-attr, operator]
        module.net.get_submodule("head.fc").bias.copy_(torch.eye(10)[3])  # type: ignore[union-attr, operator]
    pictures = Pictures()
    data = FewDigits(size=20)
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[pictures])
    trainer.fit(module, data)
    labels = torch.cat([labels for _, labels in data.batches[:2]])
    assert pictures.confusion is not None
    assert pictures.confusion.confmat[:, 3].sum() == 40
    assert [(true, said) for _, true, said in pictures.mistakes] == [(int(label), 3) for label in labels if label != 3][
        :32
    ]
    assert pictures.example is not None


@pytest.mark.parametrize(
    ("every", "limit", "drawn"),
    [
        *((0, {"max_epochs": 3}, []), (1, {"max_epochs": 3}, [3, 7, 11])),
        *((2, {"max_epochs": 3}, [7, 11]), (4, {"max_epochs": 3}, [11]), (4, {"max_steps": 8}, [7])),
    ],
)
def test_pictures_are_drawn_as_often_as_asked(
    tmp_path: Path, every: int, limit: dict[str, int], drawn: list[int]
) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        **limit,  # pyright: ignore[reportArgumentType]
        logger=logger,
        callbacks=[Pictures(every)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=4,
    )
    trainer.fit(ClassifierModule(ODENet(2, solver=RK4(num_steps=1)), schedule="constant"), FewDigits())
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert [event.step for event in events.Images("val/feature_maps")] == drawn if drawn else not tags


def test_pictures_of_a_network_without_odes(tmp_path: Path) -> None:
    pictures = Pictures()
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[pictures, EvaluationCounts()])
    trainer.fit(ClassifierModule(ResNet(2, 1)), FewDigits())
    assert "nfe/forward" not in trainer.callback_metrics


def test_pictures_refuse_a_negative_rhythm() -> None:
    with pytest.raises(ValueError, match="every_n_epochs"):
        Pictures(-1)


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
