"""Tests that need a CUDA device."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet
from odenet_lightning.augment import Deform
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.recording import REHEARSALS, CUDAGraph
from odenet_lightning.solvers import RK4, Dopri5, Solver
from tests.graph_runs import adamw, distance, muon, run
from tests.training import FewDigits, sgd, trainer_in

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


hears_prototype_notice = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Have CUDA raise wherever the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@hears_prototype_notice
@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint()], ids=["backprop", "checkpoint"])
def test_fixed_steps_never_wait_for_the_device(gradient: Gradient, no_waiting: None) -> None:
    net = ODENet(solver=RK4(num_steps=2), gradient=gradient).to("cuda", non_blocking=True)
    images = torch.zeros(8, 1, 28, 28, device="cuda")
    net(images).square().mean().backward()


@hears_prototype_notice
def test_adaptive_steps_do_wait(no_waiting: None) -> None:
    """The test above can fail."""
    net = ODENet(solver=Dopri5(1e-2, 1e-2)).to("cuda", non_blocking=True)
    with pytest.raises(RuntimeError, match="synchroniz"):
        net(torch.zeros(8, 1, 28, 28, device="cuda"))


@pytest.mark.parametrize("solver", [RK4(num_steps=2), Dopri5(1e-2, 1e-2, first_step="warm")], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint(), Adjoint()], ids=["backprop", "checkpoint", "adjoint"])
def test_mixed_precision_trains(tmp_path: Path, solver: Solver, precision: str, gradient: Gradient) -> None:
    states: list[torch.dtype] = []
    net = ODENet(solver=solver, gradient=gradient)
    net.block.field.register_forward_pre_hook(lambda _, args: states.append(args[1].dtype))
    module = ClassifierModule(net, sgd(0.01), "constant")
    trainer = trainer_in(tmp_path, max_epochs=2, accelerator="gpu", precision=precision)
    trainer.fit(module, FewDigits())
    assert set(states) == {torch.float32}
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


@pytest.fixture
def reproducible() -> Iterator[None]:
    """Take back what Lightning's `deterministic` sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("solver", [RK4(num_steps=2), Dopri5(1e-2, 1e-2, first_step="warm")], ids=["fixed", "adaptive"])
def test_resumed_run_ends_like_an_undisturbed_one(tmp_path: Path, solver: Solver, reproducible: None) -> None:
    def run(epochs: int, **options: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = ClassifierModule(ODENet(solver=solver), schedule="constant")
        data = MNISTDataModule(source="sample", augment=Deform(elastic=0.7))
        limits = {"limit_train_batches": 6, "limit_val_batches": 2, "num_sanity_val_steps": 0}
        trainer = trainer_in(tmp_path, max_epochs=epochs, accelerator="gpu", deterministic=True, **limits)
        trainer.fit(module, data, **options)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return list(module.parameters())

    whole = run(3)
    run(1)
    resumed = run(3, ckpt_path=tmp_path / "1.ckpt")
    assert all(torch.equal(expected, found) for expected, found in zip(whole, resumed, strict=True))


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> list[CUDAGraph]:
    """The CUDA graphs in the order in which they are launched."""
    repeats: list[CUDAGraph] = []
    repeat = CUDAGraph.repeat
    monkeypatch.setattr(CUDAGraph, "repeat", lambda self: repeats.append(self) or repeat(self))
    return repeats


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_200_steps_by_a_cuda_graph_equal_200_usual_ones(
    tmp_path: Path, sample_root: Path, repeats: list[CUDAGraph], optimizer: Any
) -> None:
    """With random augmentation, and a rate, a beta and clipping that change from step to step."""

    def trained(cuda_graph: bool) -> ClassifierModule:
        data = MNISTDataModule(str(sample_root), "sample", batch_size=16, augment=Deform(elastic=0.7))
        options = {"limit_train_batches": 100, "max_epochs": 2, "gradient_clip_val": 1.0, "data": data}
        return run(tmp_path, cuda_graph, optimizer=optimizer, accelerator="gpu", **options)[0]

    usual = trained(False)
    assert not repeats
    assert distance(trained(True), usual) < 1e-6
    assert len(repeats) == 200 - REHEARSALS
    assert len(set(repeats)) == 1


@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_runs_with_graphs_and_runs_on_the_cpu_resume_one_another(
    tmp_path: Path, repeats: list[CUDAGraph], optimizer: Any
) -> None:
    def part(epochs: int, accelerator: str, **options: Any) -> ClassifierModule:
        settings = {"max_epochs": epochs, "accelerator": accelerator, "schedule": "constant", **options}
        module, trainer = run(tmp_path, accelerator == "gpu", optimizer=optimizer, **settings)
        trainer.save_checkpoint(tmp_path / f"{accelerator}.ckpt")
        return module

    for first, second in (("gpu", "cpu"), ("cpu", "gpu")):
        whole = part(2, first).cpu()
        part(1, first)
        resumed = part(2, second, fit={"ckpt_path": tmp_path / f"{first}.ckpt"}).cpu()
        assert distance(resumed, whole) < 1e-5
    assert repeats


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize("shape", [(128, 6, 26, 26), (3, 1, 5, 7), (2, 16, 26, 26)])
def test_tritons_kernel(shape: tuple[int, int, int, int]) -> None:
    from tests.triton_errors import errors

    assert max(errors(*shape, device="cuda")) < 2e-6


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
def test_tritons_kernel_is_used_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    field, y = ConvField(6).cuda(), torch.randn(4, 6, 26, 26, device="cuda", requires_grad=True)
    plain = field(y.new_zeros(()), y)
    monkeypatch.setenv("ODENET_KERNELS", "triton")
    fused = field(y.new_zeros(()), y)
    assert "Triton" in type(fused.grad_fn).__name__
    assert "Triton" not in type(plain.grad_fn).__name__
    assert torch.allclose(fused, plain, atol=1e-4)
