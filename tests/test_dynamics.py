"""Dynamics of second order, and weights that are functions of t: against closed forms, and with everything else."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from odenet_lightning import ClassifierModule, ODENet
from odenet_lightning.block import ODEBlock
from odenet_lightning.cli import main
from odenet_lightning.data import load_sample, normalise
from odenet_lightning.exporting import FORMATS, FromPixels, traced
from odenet_lightning.fields import ConvField, Field, Galerkin, HeavyBall, SecondOrder, TimeBiasField
from odenet_lightning.fields.dynamics import Basis, piecewise
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.kernels import conv_field
from odenet_lightning.regularizers import Jacobian, Kinetic, Regularizer
from odenet_lightning.solvers import RK4, Dopri5, Euler, FieldError, Heun, Midpoint, Problem, Reversible, Solver
from tests.helpers import fails

BASES: list[Basis] = ["fourier", "polynomial", "piecewise"]
# each with the zeros that go with it, behind the stem's 4 channels
DYNAMICS: dict[str, tuple[Callable[[], Field], int]] = {
    "second order": (lambda: SecondOrder(ConvField(4)), 4),
    "heavy ball": (lambda: HeavyBall(TimeBiasField(4), damping=0.4), 4),
    "fourier": (lambda: shaken(Galerkin(ConvField(4), "fourier")), 0),
    "polynomial of second order": (lambda: SecondOrder(shaken(Galerkin(ConvField(4), "polynomial", 4))), 4),
    "piecewise heavy ball": (lambda: shaken(Galerkin(HeavyBall(ConvField(4)), "piecewise", 2)), 4),
}
every = pytest.mark.parametrize("name", DYNAMICS)


class Spring(Field):
    """-stiffness y."""

    def __init__(self, stiffness: float) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(stiffness, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.stiffness * y


def shaken(field: Galerkin) -> Galerkin:
    """Other weights at all times: as made, they are the same at all of them."""
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return field


def made(name: str, solver: Solver, gradient: Gradient | None = None, seed: int = 0) -> ODENet:
    torch.manual_seed(seed)
    make, zeros = DYNAMICS[name]
    return ODENet(4, solver, gradient, make(), image_shape=(1, 12, 12), augment_dim=zeros)


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(count)) * 2 - 1


def order(steps: list[int], errors: list[float]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


# --- closed forms


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


@pytest.mark.parametrize("basis", BASES)
@torch.no_grad()
def test_weights_are_those_functions_of_t(basis: Basis) -> None:
    field = shaken(Galerkin(ConvField(4).double(), basis, terms=3))
    y = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    for t in (0.0, 0.2, 0.4, 0.7, 1.0):
        psi = {
            "fourier": [1.0, math.cos(math.pi * t), math.cos(2 * math.pi * t)],
            "polynomial": [1.0, 2 * t - 1, 2 * (2 * t - 1) ** 2 - 1],
            "piecewise": [t < 1 / 3, 1 / 3 <= t < 2 / 3, t >= 2 / 3],
        }[basis]
        plain = copy.deepcopy(field.coefficients[0])
        for parameters in zip(plain.parameters(), *(each.parameters() for each in field.coefficients), strict=True):
            parameters[0].copy_(sum(value * theta for value, theta in zip(psi, parameters[1:], strict=True)))
        time = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(field(time, y), plain(time, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("terms", [1, 3])
def test_as_made_it_is_the_plain_field(basis: Basis, terms: int) -> None:
    plain = TimeBiasField(4)
    nn.init.normal_(plain.bias)
    field, y = Galerkin(copy.deepcopy(plain), basis, terms), torch.randn(2, 4, 6, 6)
    for t in torch.tensor([0.0, 0.3, 1.0]):
        torch.testing.assert_close(field(t, y), plain(t, y))
    assert sum(p.numel() for p in field.parameters()) == terms * sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("terms", [2, 3, 7, 49, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_of_a_piece_find_its_weights(terms: int, dtype: torch.dtype) -> None:
    """Times as a midpoint step takes them, up to rounding."""
    h = 1.0 / terms
    for i in range(terms):
        for t in (0.0 + i * h, 0.0 + i * h + 0.5 * h):
            assert [float(value) for value in piecewise(torch.tensor(t, dtype=dtype), terms)].index(1.0) == i
    assert float(piecewise(torch.ones((), dtype=dtype), terms)[-1]) == 1.0


@pytest.mark.parametrize(
    ("method", "steps", "nominal"),
    [
        (Euler, [96, 192, 384], 1),
        (Midpoint, [12, 24, 48, 96], 2),
        (Midpoint, [13, 25, 49, 97], 1),
        (Heun, [12, 24, 48, 96], 1),
        (RK4, [12, 24, 48, 96], 1),
    ],
)
@torch.no_grad()
def test_what_is_piecewise_keeps_the_order_only_as_stated(method: Any, steps: list[int], nominal: int) -> None:
    """dy/dt = -k(t) y."""
    field, y0 = Galerkin(Spring(1.0), "piecewise", terms=3), torch.ones(1, dtype=torch.float64)
    for coefficient, stiffness in zip(field.coefficients, (1.0, -2.0, 2.5), strict=True):
        coefficient.stiffness.fill_(stiffness)  # pyright: ignore
    truth = math.exp(-(1.0 - 2.0 + 2.5) / 3)
    problem = Problem(field, y0)
    errors = [abs(float(method(num_steps=n).solve(problem).y) - truth) for n in steps]
    assert order(steps, errors) == pytest.approx(nominal, abs=0.2)


# --- with everything else


@every
def test_gradients_agree(name: str) -> None:
    """Exact ones with each other; the adjoint's as far as its solver goes."""

    def found(solver: Solver, gradient: Gradient) -> list[Tensor]:
        net = made(name, solver, gradient).double()
        net(images(3).double()).square().sum().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    steps = Midpoint(num_steps=4)
    truth = found(steps, Backprop())
    assert len(truth) == len(list(made(name, steps).parameters()))
    for gradient in (Checkpoint(), Checkpoint(slots=2)):
        torch.testing.assert_close(found(steps, gradient), truth, rtol=1e-8, atol=1e-10)
    coupled = Reversible(steps, 0.9)
    torch.testing.assert_close(found(coupled, ReversibleGradient()), found(coupled, Backprop()), rtol=1e-6, atol=1e-8)
    if "piecewise" in name:
        return
    fine = [found(RK4(num_steps=100), gradient) for gradient in (Backprop(), Adjoint())]
    largest = max(float(grad.abs().max()) for grad in fine[0])
    assert max(float((one - other).abs().max()) for one, other in zip(*fine, strict=True)) < 1e-3 * largest


@every
def test_weights_may_be_replaced(name: str) -> None:
    """By other tensors, as `torch.func` does it; these get the gradients, whatever the gradient method."""
    grads = []
    for gradient in (Backprop(), Checkpoint(), Adjoint()):
        net = made(name, Midpoint(num_steps=64), gradient).double()
        torch.manual_seed(1)
        others = {key: (p + 0.1 * torch.randn_like(p)).detach().requires_grad_() for key, p in net.named_parameters()}
        torch.func.functional_call(net, others, (images(2).double(),)).square().sum().backward()
        assert all(p.grad is None for p in net.parameters())
        grads.append(torch.cat([p.grad.flatten() for p in others.values() if p.grad is not None]))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=1e-10)
    assert len(grads[2]) == len(grads[0])
    assert float((grads[2] - grads[0]).abs().max() / grads[0].abs().max()) < 0.05


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


def test_gradients_agree_where_each_image_has_its_own_time() -> None:
    grads = []
    for gradient in (Backprop(), Checkpoint()):
        net = made("polynomial of second order", Dopri5(1e-3, 1e-3, per_sample=True), gradient).double()
        net(images(3).double()).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


@every
@pytest.mark.parametrize("regularizer", [Kinetic(), Jacobian()], ids=["Kinetic", "Jacobian"])
def test_regularizers_have_gradients(name: str, regularizer: Regularizer) -> None:
    values, grads = [], []
    for gradient in (Backprop(), Checkpoint()):
        block = made(name, Midpoint(num_steps=2), gradient).double().block
        torch.manual_seed(1)
        y0 = torch.randn(2, 8 if DYNAMICS[name][1] else 4, 5, 5, dtype=torch.float64)
        problem = Problem(block.field, y0)
        _, value = regularizer.solve(gradient, block.solver, problem)
        value.backward()
        values.append(value.detach())
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad for p in block.parameters()])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*grads)
    assert max(float(grad.abs().max()) for grad in grads[0]) > 0


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


# --- refusals


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


def test_weight_norm_in_galerkin() -> None:
    """torch's older one cannot be copied."""
    plain = ConvField(4)
    weight_norm(plain.conv)
    field, y = Galerkin(copy.deepcopy(plain)), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(field(torch.tensor(0.3), y), plain(torch.tensor(0.3), y))
    shaken(field)(torch.tensor(0.3), y).sum().backward()
    assert all(p.grad is not None for p in field.parameters())
    older = ConvField(4)
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(older.conv)
    with pytest.raises(ValueError, match=r"ConvField cannot be copied.*parametrizations\.weight_norm"):
        Galerkin(older)
    Galerkin(older, terms=1)


def test_galerkin_of_a_layer_under_two_names() -> None:
    """It keeps its parameters, and both uses get the weights of t."""

    class Twice(Field):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.same = self.conv

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.same(torch.tanh(self.conv(y))))

    field, y = shaken(Galerkin(Twice())), torch.randn(2, 4, 6, 6)
    before = list(field.parameters())
    for t in (0.0, 0.5, 1.0):
        field(torch.tensor(t), y).square().sum().backward()
    assert all(one is other and one.grad is not None for one, other in zip(before, field.parameters(), strict=True))
    assert len(before) == 6


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
