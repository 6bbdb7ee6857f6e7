"""The module trains as a bare loop does, at any precision, and counts what it should."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet, ResNet
from odenet_lightning.callbacks import EvaluationCounts, Pictures
from odenet_lightning.gradients import Adjoint, Checkpoint, Gradient
from odenet_lightning.models import Classifier
from odenet_lightning.solvers import RK4, Dopri5, Euler
from tests.training import FewDigits, sgd, trainer_in


def bare_loop(net: Classifier, batches: list[tuple[Tensor, Tensor]], lr: float) -> float:
    """The same training without Lightning; returns the seconds it took."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    begin = time.perf_counter()
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return time.perf_counter() - begin


@pytest.mark.parametrize("net", [ODENet, ResNet])
def test_trains_as_a_bare_loop_does(tmp_path: Path, net: type[Classifier]) -> None:
    torch.manual_seed(0)
    ours, bare = net(), net()
    bare.load_state_dict(ours.state_dict())
    data = FewDigits()
    module = ClassifierModule(ours, sgd(0.01), schedule="constant")
    trainer_in(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, data)
    bare_loop(bare, data.batches, 0.01)
    for (name, found), expected in zip(ours.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_same_seed_gives_the_same_bits(tmp_path: Path, sample_root: Path) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        module = ClassifierModule()
        data = MNISTDataModule(root=str(sample_root), source="sample")
        trainer_in(tmp_path, max_epochs=1, limit_train_batches=15, limit_val_batches=1).fit(module, data)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("gradient", "backward"),
    [(None, None), (Checkpoint(), 8), (Adjoint(), 8)],
    ids=["backprop", "checkpoint", "adjoint"],
)
def test_evaluations_are_logged_apart(tmp_path: Path, gradient: Gradient | None, backward: int | None) -> None:
    module = ClassifierModule(ODENet(solver=RK4(num_steps=2), gradient=gradient))
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[EvaluationCounts()])
    trainer.fit(module, FewDigits())
    assert trainer.logged_metrics["nfe/forward"] == 8
    assert trainer.logged_metrics.get("nfe/backward") == backward
    assert trainer.logged_metrics["nfe/val_forward"] == 8
    if isinstance(gradient, Adjoint):
        assert 0 < trainer.logged_metrics["adjoint/y0_error"] < 0.1
    else:
        assert "adjoint/y0_error" not in trainer.logged_metrics


def test_validation_does_not_leak_into_trainings_count(tmp_path: Path) -> None:
    """Validation in the middle of an epoch, by another number of steps than training's."""
    logged: list[float] = []

    class Spy(EvaluationCounts):
        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.net.block.solver = RK4(num_steps=5)

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.net.block.solver = RK4(num_steps=2)

        def on_train_batch_end(self, trainer: Trainer, *args: Any, **options: Any) -> None:
            super().on_train_batch_end(trainer, *args, **options)
            logged.append(float(trainer.callback_metrics["nfe/forward"]))

    module = ClassifierModule(ODENet(solver=RK4(num_steps=2)))
    trainer = trainer_in(tmp_path, max_epochs=2, val_check_interval=2, log_every_n_steps=1, callbacks=[Spy()])
    trainer.fit(module, FewDigits())
    assert logged == [8.0] * 8
    assert trainer.callback_metrics["nfe/val_forward"] == 20


def test_checkpoint_brings_warm_steps_back(tmp_path: Path) -> None:
    module = ClassifierModule(ODENet(solver=Dopri5(1e-3, 1e-3, first_step="warm")))
    trainer = trainer_in(tmp_path, max_epochs=1)
    trainer.fit(module, FewDigits())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    warm = module.net.ode_blocks[0].warm_step
    assert warm is not None
    fresh = ClassifierModule(ODENet(solver=Dopri5(1e-3, 1e-3, first_step="warm")))
    results = trainer_in(tmp_path).test(fresh, FewDigits(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert fresh.net.ode_blocks[0].warm_step == warm
    assert results == trainer.test(module, FewDigits(), verbose=False)


def test_resumed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> tuple[ClassifierModule, Trainer]:
        torch.manual_seed(0)
        module = ClassifierModule(ODENet(), sgd(0.01), schedule="constant")
        trainer = trainer_in(tmp_path, max_epochs=epochs)
        trainer.fit(module, FewDigits(), **options)
        return module, trainer

    whole, _ = run(3)
    _, first = run(1)
    first.save_checkpoint(tmp_path / "first.ckpt")
    resumed, _ = run(3, ckpt_path=tmp_path / "first.ckpt")
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("precision", ["bf16-mixed"])
@pytest.mark.parametrize("gradient", [None, Checkpoint(), Adjoint()], ids=["backprop", "checkpoint", "adjoint"])
def test_mixed_precision_keeps_the_state_in_float32(tmp_path: Path, precision: Any, gradient: Gradient | None) -> None:
    states: list[torch.dtype] = []
    halves: list[torch.dtype] = []
    net = ODENet(solver=Dopri5(1e-2, 1e-2), gradient=gradient)
    net.block.field.register_forward_pre_hook(lambda _, args: states.append(args[1].dtype))
    net.block.field.get_submodule("conv").register_forward_hook(lambda *args: halves.append(args[-1].dtype))
    module = ClassifierModule(net, sgd(0.01), schedule="constant")
    trainer_in(tmp_path, max_epochs=1, precision=precision, limit_val_batches=0).fit(module, FewDigits())
    assert set(states) == {torch.float32}
    assert set(halves) == {torch.bfloat16}, "forward and on the way back"
    exact = ODENet(solver=Dopri5(1e-2, 1e-2))
    assert all(bool(p.isfinite().all()) for p in exact.parameters())


def test_mixed_precision_stays_close_to_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        module = ClassifierModule(ODENet(), sgd(0.01), schedule="constant")
        trainer = trainer_in(tmp_path, max_epochs=3, precision=precision)  # type: ignore[arg-type]
        trainer.fit(module, FewDigits())
        losses[precision] = float(trainer.callback_metrics["val/loss"])
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)


def test_num_params_and_plain_hyperparameters() -> None:
    module = ClassifierModule(ODENet(solver=Euler(num_steps=3)))
    assert module.num_params == 10_564
    plain = {"schedule": "one_cycle", "on_solver_error": "raise", "compile": False}
    assert dict(module.hparams) == plain | {"cuda_graph": False, "class_names": None}


def test_a_batch_without_a_loss_is_not_left_out_of_the_mean(tmp_path: Path) -> None:
    data = FewDigits()
    data.batches[1][0].fill_(float("nan"))
    module = ClassifierModule(ResNet(2, 1))
    (results,) = trainer_in(tmp_path).validate(module, data, verbose=False)
    assert results["val/loss"] != results["val/loss"], "NaN"


def test_the_loss_is_a_mean_over_images_not_over_batches(tmp_path: Path) -> None:
    """The last batch is smaller, and its images count no more for that."""
    data = FewDigits()
    images, labels = data.batches[1]
    data.batches[1] = (images[:1], labels[:1])
    module = ClassifierModule(ResNet(2, 1)).eval()
    (results,) = trainer_in(tmp_path).validate(module, data, verbose=False)
    images, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        truth = F.cross_entropy(module(images), labels)
    assert results["val/loss"] == pytest.approx(float(truth), rel=1e-6)


def test_more_classes_than_ten(tmp_path: Path) -> None:
    """Of a user's own data module, with pictures of what went wrong."""
    net, data, pictures = ResNet(2, 1), FewDigits(size=26), Pictures()
    net.head.fc = torch.nn.Linear(net.head.fc.in_features, 26)  # type: ignore[union-attr, arg-type]
    data.batches = [(images, torch.arange(26)) for images, _ in data.batches]
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    module = ClassifierModule(net, sgd(1e-9), schedule="constant")
    trainer = trainer_in(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=1, callbacks=[pictures])
    trainer.fit(module, data)
    assert pictures.confusion is not None
    assert pictures.confusion.confmat.shape == (26, 26)
    assert pictures.confusion.confmat.sum() == 52
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in data.batches[:2])
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(right / 52)


@pytest.mark.filterwarnings("ignore:You requested to overfit")  # and shuffle: the order stays the first epoch's
def test_overfitting_takes_the_same_batches_in_every_epoch(tmp_path: Path, sample_root: Path) -> None:
    seen: list[Tensor] = []
    module = ClassifierModule(ResNet(2, 1), sgd(0.01), schedule="constant")
    module.on_train_batch_start = lambda batch, _: seen.append(batch[1])  # type: ignore[method-assign]
    data = MNISTDataModule(root=str(sample_root), source="sample", augment=False)
    trainer_in(tmp_path, max_epochs=3, overfit_batches=2).fit(module, data)
    assert len(seen) == 6
    assert not torch.equal(seen[0], seen[1])
    for epoch in (1, 2):
        assert torch.equal(torch.cat(seen[:2]), torch.cat(seen[2 * epoch : 2 * epoch + 2]))


def test_accuracy_is_right_for_any_number_of_classes(tmp_path: Path) -> None:
    """Of 26 classes three quarters are right, those from the tenth on, too."""

    class Known(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    labels = torch.arange(26).repeat(4)
    guessed = torch.where(torch.arange(104) < 78, labels, (labels + 1) % 26)
    data = TensorDataset(F.one_hot(guessed, 26).float(), labels)
    module = ClassifierModule(Known())
    (scores,) = trainer_in(tmp_path).test(module, DataLoader(data, 16), verbose=False)
    assert scores["test/acc"] == pytest.approx(0.75)
    assert module.class_names is None, "nobody has named them"
