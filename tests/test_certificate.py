"""The certificate against networks whose answers are known in closed form, and from the command line."""

import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from odenet_lightning.certificate import Certificate, accurate_solver, certify, hardly_changed
from odenet_lightning.cli.main import main
from odenet_lightning.gradients import Adjoint, Backprop
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.models import Classifier, Composed, ResNet
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Euler, Midpoint, Reversible
from tests.problems import ANGLE, network, points


def certificate(net: Classifier, count: int = 720) -> Certificate:
    found = certify(net, points(count), torch.zeros(count, dtype=torch.long))
    assert found is not None
    return found


def turned(matrix: list[list[float]]) -> Tensor:
    return (points(720) @ torch.tensor(matrix).T).argmax(1)


def test_a_network_that_has_learned_its_step() -> None:
    """One step of Euler's method is the matrix (1, -a; a, 1), an accurate solve the rotation."""
    found = certificate(network(Euler(num_steps=1)))
    own = turned([[1.0, -ANGLE], [ANGLE, 1.0]])
    exact = turned([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]])
    assert not found.is_ode
    assert abs(found.changed - int((own != exact).sum())) <= 2
    assert found.accuracy == pytest.approx(float((own == 0).double().mean()), abs=2e-3)
    assert found.accurate_accuracy == pytest.approx(float((exact == 0).double().mean()), abs=2e-3)
    error = math.dist((1.0, ANGLE), (math.cos(ANGLE), math.sin(ANGLE)))
    assert found.error_median == pytest.approx(error, rel=1e-3)
    assert found.error_worst == pytest.approx(error, rel=1e-3)
    assert found.gradient_error > 0.1
    assert found.rows()[-1][1].startswith("no: an accurate solver changes")


def test_an_ode() -> None:
    found = certificate(network(RK4(num_steps=20)))
    assert found.is_ode
    assert found.changed <= 1
    assert found.error_worst < 1e-3
    assert found.reversibility < 1e-3
    assert found.gradient_error < 1e-3
    assert found.coupling < 1e-6
    assert found.images == 720
    assert found.rows()[-1][1].startswith("yes: ")


def test_a_flow_that_cannot_be_solved_backwards() -> None:
    """At exp(-30) the error of a solve at 1e-4 is larger than the state."""
    assert certificate(network(RK4(num_steps=60), decay=30.0)).reversibility > 1


def test_a_blocks_error_is_its_own() -> None:
    """Of two rotations the first is coarse: the second one's states are wrong, its error is not."""
    first, second = (network(solver).ode_blocks[0] for solver in (Euler(num_steps=1), RK4(num_steps=20)))
    found = certificate(Composed(nn.Identity(), nn.Identity(), nn.Sequential(first, second)), count=40)
    error = math.dist((1.0, ANGLE), (math.cos(ANGLE), math.sin(ANGLE)))
    assert found.error_worst == pytest.approx(error, rel=1e-3)
    assert found.error_median < 1e-3, "of 80 errors, half are the second block's"


def test_gradient_and_company() -> None:
    """A loose adjoint's gradient is off; a step size for all images depends on them."""
    loose = certificate(network(Bosh3(0.3, 0.3), Adjoint(0.5, 0.5)))
    slopes = []
    for solver, gradient in ((Bosh3(0.3, 0.3), Adjoint(0.5, 0.5)), (Dopri5(1e-8, 1e-8), Backprop())):
        net = network(solver, gradient)
        torch.nn.functional.cross_entropy(net(points(720)[:16]), torch.zeros(16, dtype=torch.long)).backward()
        slopes.append(float(net.ode_blocks[0].field.angle.grad))  # pyright: ignore[reportArgumentType]
    assert loose.gradient_error == pytest.approx(abs(slopes[0] / slopes[1] - 1), rel=1e-2)
    assert loose.gradient_error > 1e-2
    net = network(Bosh3(0.1, 0.1))
    mixed = points(32) * torch.linspace(0.1, 30.0, 32)[:, None]
    found = certify(net, mixed, torch.zeros(32, dtype=torch.long))
    assert found is not None
    assert found.coupling > 1e-4


def test_reversible_steps() -> None:
    net = network(Reversible(Midpoint(num_steps=80)), ReversibleGradient())
    certificate = certify(net, points(40), torch.zeros(40, dtype=torch.long))
    assert certificate is not None
    assert certificate.error_worst < 1e-2
    assert certificate.gradient_error < 1e-2


def test_the_network_is_left_as_it_was() -> None:
    net = network(Bosh3(0.1, 0.1, first_step="warm"), Adjoint())
    block = net.ode_blocks[0]
    block.warm_step, before = 0.25, (block.solver, block.gradient)
    with torch.inference_mode():
        certificate(net.train())
    assert (block.solver, block.gradient, block.warm_step, net.training) == (*before, 0.25, True)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("changed", "images", "hardly"), [(1, 10, True), (2, 10, False), (3, 1000, True), (4, 1000, False)]
)
def test_an_odes_predictions_hardly_change(changed: int, images: int, hardly: bool) -> None:
    """One of few images, three in a thousand of many."""
    assert hardly_changed(changed, images) is hardly


def test_a_strict_solver_is_held_against_a_stricter_one() -> None:
    assert accurate_solver(network(Euler(num_steps=1))).rtol == 1e-4
    assert accurate_solver(network(Dopri5(1e-3, 1e-3))).rtol == 1e-4
    assert accurate_solver(network(Dopri5(1e-6, 1e-6))).rtol == pytest.approx(1e-7)


def test_a_residual_network_has_none() -> None:
    assert certify(ResNet(2, 1), torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.long)) is None


def test_every_run_says_it(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--data.root", str(sample_root), "--data.source", "sample", "--trainer.accelerator", "cpu"]
    short = [*few, "--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1", "--model.net.channels", "2"]
    main(["fit", *short, "--is_ode.images", "70"])
    assert "of 70 images" in (said := capsys.readouterr().out)
    assert "is it an ODE" in said
    events = EventAccumulator("lightning_logs/version_0").Reload()
    assert {f"ode/{name}" for name in ("changed", "error_median", "gradient_error")} <= set(events.Tags()["scalars"])
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    for command in ("test", "validate"):
        main([command, *few, "--ckpt_path", path])
        assert "of 500 images" in capsys.readouterr().out
    main(["fit", *short, "--is_ode.images", "0"])
    main(["fit", *few, *short[6:10], "--model.net", "ResNet"])
    assert "is it an ODE" not in capsys.readouterr().out
