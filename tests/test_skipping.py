"""Solves that fail in training: the run ends, or their batches are left out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning import ClassifierModule, ODENet
from odenet_lightning.callbacks import (
    EvaluationCounts,
)
from odenet_lightning.cli import main
from odenet_lightning.fields import Field
from odenet_lightning.gradients import Adjoint
from odenet_lightning.skipping import MAX_SKIPS
from odenet_lightning.solvers import Bosh3, Dopri5, SolverError
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
