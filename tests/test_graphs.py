"""Recorded training steps, by a recorder for the CPU that calls the recorded function again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import SGD, AdamW, Optimizer

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet, ResNet, graphs
from odenet_lightning.augment import Deform
from odenet_lightning.callbacks import CoarseStart, EvaluationCounts, Resume, Throughput
from odenet_lightning.gradients import Checkpoint, Gradient
from odenet_lightning.graphs import Rates
from odenet_lightning.recording import REHEARSALS, Recorder
from odenet_lightning.solvers import Bosh3, Euler, Midpoint, Solver, TorchDiffEq
from tests.graph_runs import adamw, distance, muon, run, weights
from tests.training import FewDigits, trainer_in


class CalledAgain(Recorder):
    """As in a CUDA graph, the numbers in the optimiser's groups stay those of the recording; tensors are read anew.

    Args:
        calls: notes how each step came about.
        waits: what rehearsals are to tell.
    """

    def __init__(self, calls: list[str], waits: bool) -> None:
        self.calls, self.waits = calls, waits

    def rehearse(self, function: Callable[[], None]) -> bool:
        self.calls.append("rehearsed")
        function()
        return self.waits

    def record(self, function: Any) -> None:
        self.calls.append("recorded")
        self.function, self.groups = function, function.__self__.function.__self__.optimizer.param_groups
        self.frozen = [dict(group) for group in self.groups]

    def repeat(self) -> None:
        self.calls.append("repeated")
        current = [dict(group) for group in self.groups]
        for groups in (self.frozen, current):
            for group, values in zip(self.groups, groups, strict=True):
                group.update(values)
            if groups is self.frozen:
                self.function()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the recorders do."""
    calls: list[str] = []
    monkeypatch.setattr(graphs, "recorder_for", lambda device: CalledAgain(calls, waits=False))
    return calls


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


class Looks(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        assert all(p.grad is not None for p in pl_module.parameters())


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.01, momentum=0.9)


@pytest.mark.parametrize(
    ("solver", "gradient", "options", "told"),
    [
        (Bosh3(0.1, 0.1), None, {}, r"Bosh3\(.*chooses its steps"),
        (TorchDiffEq("rk4", options={"step_size": 0.5}), None, {}, r"TorchDiffEq\(.*chooses its steps"),
        (Euler(num_steps=1), Checkpoint(), {}, r"Checkpoint\(\) reads values"),
        (Euler(num_steps=1), None, {"accumulate_grad_batches": 2}, "gradients are accumulated"),
        (Euler(num_steps=1), None, {"callbacks": [Looks()]}, r"Looks\.on_after_backward wants the gradients"),
        (Euler(num_steps=1), None, {"optimizer": sgd}, "SGD is none of Adam, AdamW, MuonWithAdamW"),
    ],
    ids=["adaptive", "torchdiffeq", "checkpoint", "accumulation", "hook", "optimizer"],
)
def test_what_cannot_be_recorded_runs_as_usual_and_is_told_once(
    tmp_path: Path, calls: list[str], solver: Solver, gradient: Gradient | None, options: dict[str, Any], told: str
) -> None:
    def trained(cuda_graph: bool) -> Tensor:
        return weights(run(tmp_path, cuda_graph, lambda: ODENet(2, solver=solver, gradient=gradient), **options)[0])

    usual = trained(False)
    with pytest.warns(UserWarning, match=f"steps run without a CUDA graph: {told}") as heard:
        found = trained(True)
    assert sum("CUDA graph" in str(warning.message) for warning in heard) == 1
    assert not calls
    assert torch.equal(found, usual)


def test_16_mixed_is_left_to_its_scaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, trainer = run(tmp_path, False, batches=1)
    assert graphs.find_obstacle(module, module.net) is None
    monkeypatch.setattr(type(trainer), "precision", "16-mixed")
    assert "16-mixed" in str(graphs.find_obstacle(module, module.net))
    monkeypatch.undo()
    monkeypatch.setattr(type(trainer), "world_size", 2)
    assert "several processes" in str(graphs.find_obstacle(module, module.net))


def test_a_network_that_waits_for_the_device_is_rehearsed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(graphs, "recorder_for", lambda device: CalledAgain(calls, waits=True))
    usual, _ = run(tmp_path, False)
    with pytest.warns(UserWarning, match="without a CUDA graph: the network or the optimiser reads values"):
        recorded, _ = run(tmp_path, True)
    assert calls == ["rehearsed"] * REHEARSALS
    assert distance(recorded, usual) < 1e-10


def test_there_are_none_on_the_cpu(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="without a CUDA graph: there are none on the device cpu"):
        recorded, _ = run(tmp_path, True)
    assert torch.equal(weights(recorded), weights(run(tmp_path, False)[0]))


def test_a_discrete_network_is_recorded_too(tmp_path: Path, calls: list[str]) -> None:
    usual, _ = run(tmp_path, False, lambda: ResNet(2, 2))
    recorded, _ = run(tmp_path, True, lambda: ResNet(2, 2))
    assert calls.count("repeated") == 5
    assert distance(recorded, usual) < 1e-10


def test_a_divergent_run_ends(tmp_path: Path, calls: list[str]) -> None:
    def wild(parameters: Any) -> Optimizer:
        return AdamW(parameters, lr=1e200)

    with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) at step [2-9]"):
        run(tmp_path, True, optimizer=wild, log_every_n_steps=1)


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
def test_batches_are_skipped(tmp_path: Path, calls: list[str]) -> None:
    net = ODENet(2, solver=Midpoint(num_steps=2), max_nfe=3)
    module = ClassifierModule(net, adamw, on_solver_error="skip", cuda_graph=True)
    before = weights(module)
    trainer_in(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, FewDigits(4))
    assert module.skips.total == 4
    assert torch.equal(weights(module), before)


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_optimisers_read_nothing_from_a_cuda_device(
    optimizer: Callable[..., Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tensors that have a CUDA device and no values, so that reading one is an error."""
    device = torch.device("cuda:0")
    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(shape, device=device)) for shape in ((4, 2, 3, 3), (4,))]
        stepper = optimizer(parameters)
        for p in parameters:
            p.grad = torch.empty_like(p)
        rates = Rates(stepper, device)
        rates.update()
        with rates.in_groups():
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            stepper.step()
            with pytest.raises(DataDependentOutputException):
                float(rates.tensors[0][0])
