"""Dynamics of second order, and weights that are functions of t: in networks, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from odenet_lightning import ClassifierModule, ODENet
from odenet_lightning.block import ODEBlock
from odenet_lightning.cli import main
from odenet_lightning.data import load_sample, normalise
from odenet_lightning.exporting import FORMATS, FromPixels, traced
from odenet_lightning.fields import ConvField, Galerkin, HeavyBall, SecondOrder
from odenet_lightning.gradients import Backprop
from odenet_lightning.kernels import conv_field
from odenet_lightning.solvers import RK4, Dopri5, Euler, FieldError, Heun, Midpoint, Problem
from tests.dynamics import Spring, every, images, made, order
from tests.helpers import fails


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize(("method", "nominal"), [(Euler, 1), (Midpoint, 2), (Heun, 2), (RK4, 4)])
@torch.no_grad()
def test_a_spring_swings_as_it_must(method: Any, nominal: int, damping: float) -> None:
    """y'' + damping y' = -9 y."""
    spring = Spring(9.0)
    field = HeavyBall(spring, damping).double() if damping else SecondOrder(spring)
    y0, v0 = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half, speed = damping / 2, math.sqrt(9 - damping**2 / 4)
    cos, sin, shrunk = math.cos(speed), math.sin(speed), math.exp(-half)
    position = shrunk * (y0 * cos + (v0 + half * y0) / speed * sin)
    velocity = shrunk * (v0 * cos - (half * v0 + 9 * y0) / speed * sin)
    truth, steps = torch.cat([position, velocity], 1), [32, 64, 128] if nominal > 1 else [512, 1024, 2048]
    problem = Problem(field, torch.cat([y0, v0], 1), 0.0, 1.0, max_nfe=10_000)
    errors = [float((method(num_steps=n).solve(problem).y - truth).abs().max()) for n in steps]
    assert order(steps, errors) == pytest.approx(nominal, abs=0.2)


@every
@torch.no_grad()
def test_each_image_has_its_own_time(name: str) -> None:
    net = made(name, Dopri5(1e-3, 1e-3, per_sample=True)).double().eval()
    x, t = images(5).double(), torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    y, field = net.stem(x), net.block.field
    together = field(t.view(-1, 1, 1, 1), y)
    alone = torch.cat([field(time, image) for time, image in zip(t, y.split(1), strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net(x), torch.cat([net(image) for image in x.split(1)]), rtol=1e-8, atol=1e-8)


@pytest.mark.skipif(conv_field.library() is None, reason="the kernel is not compiled here")
@pytest.mark.parametrize("name", ["second order", "fourier"])
def test_evaluations_run_in_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grads, taken, evaluate = [], [], conv_field.ConvFieldStep.apply
    for library in (conv_field.library, lambda: None):
        with monkeypatch.context() as patch:
            patch.setattr(conv_field, "library", library)
            patch.setattr(conv_field.ConvFieldStep, "apply", lambda *args: taken.append(1) or evaluate(*args))
            net = made(name, Midpoint(num_steps=2))
            net(images(3)).square().sum().backward()
            grads.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    assert len(taken) == 4


@pytest.mark.parametrize("name", ["fourier", "piecewise heavy ball"])
def test_exported_and_compiled(name: str) -> None:
    net = made(name, Midpoint(num_steps=2)).eval()
    make, again = FORMATS[".pt2"]
    run = again(make(traced(net, (1, 12, 12)), {"classes": "[]"}))
    pixels = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(run(pixels), FromPixels(net)(pixels), rtol=0, atol=1e-5)
        expected = net(x)
    torch._dynamo.reset()
    net.block.field.compile(backend="aot_eager")  # by the tracer alone: the compiler behind it takes a minute
    torch.testing.assert_close(net(x).detach(), expected, rtol=1e-4, atol=1e-5)


SPRING = ["--model.net.field", "SecondOrder", "--model.net.augment_dim", "6"]
BALL = ["--model.net.channels", "8", "--model.net.field", "HeavyBall", "--model.net.field.damping", "0.3"]
BALL += ["--model.net.field.field", "TimeBiasField", "--model.net.field.field.channels", "4"]
WAVES = ["--model.net.field", "Galerkin", "--model.net.field.basis", "polynomial", "--model.net.field.terms", "2"]
FEW = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "8", "--trainer.limit_val_batches", "1"]
FEW += ["--pictures.every_n_epochs", "0", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]


@pytest.mark.parametrize("flags", [SPRING, BALL, WAVES], ids=["second order", "heavy ball", "polynomial"])
def test_the_command_line_trains_and_a_checkpoint_brings_it_back(
    flags: list[str], workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--data.source", "sample", "--data.root", str(sample_root)]
    main(["fit", *at, *flags, *FEW])
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    module = ClassifierModule.load_from_checkpoint(path).eval()
    field = module.net.ode_blocks[0].field
    assert type(field).__name__ in flags
    weights = torch.load(path, weights_only=False)["state_dict"]
    torch.testing.assert_close(dict(module.state_dict()), dict(weights), rtol=0, atol=0)
    digits = load_sample(sample_root)[torch.arange(0, 5_000, 10)]
    with torch.no_grad():
        accuracy = (module(normalise(digits.images)).argmax(1) == digits.labels).float().mean()
    assert accuracy > 0.25
    capsys.readouterr()
    main(["test", *at, "--ckpt_path", path, "--trainer.limit_test_batches", "1"])
    assert "is it an ODE" in capsys.readouterr().out


def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for damping in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            HeavyBall(damping=damping)
    with pytest.raises(ValueError, match="whole number of at least 1"):
        Galerkin(terms=0)
    with pytest.raises(ValueError, match="one of fourier, polynomial, piecewise"):
        Galerkin(basis="wavelet")  # pyright: ignore
    block = ODEBlock(SecondOrder(ConvField(3)), Euler(num_steps=1), Backprop())
    with pytest.raises(FieldError, match=r"SecondOrder needs an even number of channels.*\[2, 7, 4, 4\]"):
        block(torch.zeros(2, 7, 4, 4))
    for field in (SecondOrder, HeavyBall):
        with pytest.raises(FieldError, match=rf"{field.__name__}: .* on 3 of the state's 6 channels .*augment_dim N"):
            ODENet(field=field())(torch.zeros(2, 1, 28, 28))
    assert "Galerkin" in fails(["fit", "--model.net.field", "Galerkin", "--model.net.field.terms", "0"], capsys)


def test_no_zeros_leave_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    plain = ODENet()
    torch.manual_seed(0)
    wider = ODENet(augment_dim=6)
    assert plain.num_params == 10_564
    assert list(plain.state_dict()) == list(wider.state_dict())
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(wider.stem(x)[:, :6], plain.stem(x))
    assert not wider.stem(x)[:, 6:].any()
    assert wider(x).shape == (2, 10)
