"""Training with a regularizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from odenet_lightning import ClassifierModule, ODENet, ResNet
from odenet_lightning.gradients import Backprop
from odenet_lightning.models import PyramidODENet
from odenet_lightning.regularizers import (
    ErrorEstimate,
    Jacobian,
    Kinetic,
    Regularizer,
    Stiffness,
    regularized,
)
from odenet_lightning.solvers import Dopri5, SolverError
from tests.every_regularizer import EVERY, name
from tests.training import FewDigits, sgd, trainer_in


def trained(folder: Path, regularizer: Regularizer | None, **options: Any) -> ClassifierModule:
    torch.manual_seed(0)
    net = ODENet(channels=2, solver=Dopri5(1e-2, 1e-2))
    module = ClassifierModule(net, sgd(0.01), schedule="constant", regularizer=regularizer)
    trainer_in(folder, max_epochs=1, log_every_n_steps=1, **options).fit(module, FewDigits())
    return module


@pytest.mark.parametrize("regularizer", [Kinetic(2.0), Jacobian(2.0), ErrorEstimate(2.0), Stiffness(2.0)], ids=name)
def test_a_step_of_training_adds_the_weighted_value(
    tmp_path: Path, regularizer: Regularizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)  # the same probe
    module = trained(tmp_path, regularizer, max_steps=1, limit_val_batches=0)
    torch.manual_seed(0)
    net = ODENet(channels=2, solver=Dopri5(1e-2, 1e-2))
    images, labels = FewDigits().batches[0]
    with regularized(net, regularizer) as values:
        loss = F.cross_entropy(net(images), labels)
    optimizer = sgd(0.01)(net.parameters())
    (loss + 2.0 * values[0]).backward()
    optimizer.step()
    for found, expected in zip(module.net.parameters(), net.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-7)
    logged = module.trainer.callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(logged[f"reg/{regularizer.name}"]) == pytest.approx(values[0].item(), rel=1e-4)


@pytest.mark.parametrize("regularizer", EVERY, ids=name)
def test_evaluation_knows_no_regularizer(tmp_path: Path, regularizer: Regularizer) -> None:
    module = trained(tmp_path, regularizer)
    (block,) = module.net.ode_blocks
    assert type(block.gradient) is Backprop, "it is taken out after each step"
    plain = ClassifierModule(module.net)
    for run in ("validate", "test"):
        results, states = [], []
        for each in (module, plain):
            torch.manual_seed(0)
            results += getattr(trainer_in(tmp_path), run)(each, FewDigits(), verbose=False)
            states.append(torch.get_rng_state())
        assert results[0] == results[1]
        assert torch.equal(*states)


def test_a_failed_solve_leaves_no_regularizer_behind() -> None:
    net = ODENet(channels=2)
    net.block.max_nfe = 1
    with pytest.raises(SolverError), regularized(net, Kinetic()):
        net(torch.randn(2, 1, 28, 28))
    assert type(net.block.gradient) is Backprop


def test_the_value_is_the_mean_over_blocks(tmp_path: Path) -> None:
    module = ClassifierModule(PyramidODENet(), sgd(0.01), schedule="constant", regularizer=Kinetic())
    with regularized(module.net, Kinetic()) as values:
        module.net(FewDigits().batches[0][0])
    assert len(values) == 2
    trainer_in(tmp_path, max_steps=1, limit_val_batches=0, log_every_n_steps=1).fit(module, FewDigits())
    mean = (values[0].item() + values[1].item()) / 2
    assert float(module.trainer.callback_metrics["reg/kinetic"]) == pytest.approx(mean, rel=1e-4)


def test_a_network_without_an_ode_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"Kinetic\(weight=0.1\) is for ODE blocks, of which ResNet has none"),
        regularized(ResNet(), Kinetic()),
    ):
        pass
