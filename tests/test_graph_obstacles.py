"""Training steps that cannot be recorded run as usual, with a warning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import SGD, AdamW, Optimizer

from odenet_lightning import ClassifierModule, ODENet, ResNet, graphs
from odenet_lightning.gradients import Checkpoint, Gradient
from odenet_lightning.graphs import Rates
from odenet_lightning.recording import REHEARSALS
from odenet_lightning.solvers import Bosh3, Euler, Midpoint, Solver, TorchDiffEq
from tests.called_again import CalledAgain
from tests.graph_runs import adamw, distance, muon, run, weights
from tests.training import FewDigits, trainer_in


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
