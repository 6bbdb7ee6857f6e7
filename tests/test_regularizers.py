"""Regularizers: values and gradients against independent ones, what is refused, and training with them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning import ClassifierModule, ODENet, ResNet
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, GradientError
from odenet_lightning.models import PyramidODENet
from odenet_lightning.regularizers import (
    ErrorEstimate,
    Jacobian,
    Kinetic,
    RandomEnd,
    Regularizer,
    Stiffness,
    regularized,
)
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Midpoint, Problem, Solver, SolverError, TorchDiffEq, Tsit5
from odenet_lightning.solvers import Reversible as ReversibleSolver
from tests.problems import Decay, Linear, Logistic, Swing, relative_error
from tests.training import FewDigits, sgd, trainer_in

EVERY = (Kinetic(), Jacobian(), ErrorEstimate(), Stiffness(), RandomEnd())
EXACT = (Backprop(), Checkpoint(), Checkpoint(slots=2))


def name(x: object) -> str:
    return type(x).__name__


@dataclass
class Flow:
    """A field whose path and Jacobian have closed forms, as functions of its parameters and y0, `[B, n]`."""

    field: nn.Module
    y0: Tensor
    y: Callable[[float], Tensor]
    row: Callable[[float, Tensor, Tensor], Tensor]  # of t, y and v: v^T df/dy


def linear() -> Flow:
    field = Linear([[0.3, 1.0], [-4.0, -0.7]])
    y0 = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    return Flow(field, y0, lambda t: y0 @ torch.linalg.matrix_exp(field.matrix * t).T, lambda t, y, v: v @ field.matrix)


def swing() -> Flow:
    field = Swing(2.0)
    y0 = torch.tensor([[1.0, -0.4]], dtype=torch.float64, requires_grad=True)
    end = torch.tensor(1.0, dtype=torch.float64)
    return Flow(
        field,
        y0,
        lambda t: y0 * torch.exp(field.strength * torch.sin(end * t)),
        lambda t, y, v: v * field.strength * torch.cos(end * t),
    )


def logistic() -> Flow:
    field = Logistic(3.0, 1.5)
    y0 = torch.tensor([[0.1, 0.4], [1.7, 0.9]], dtype=torch.float64, requires_grad=True)
    return Flow(
        field,
        y0,
        lambda t: field.capacity / (1 + (field.capacity / y0 - 1) * torch.exp(-field.rate * t)),
        lambda t, y, v: v * field.rate * (1 - 2 * y / field.capacity),
    )


PATHS = {"linear": linear, "swing": swing, "logistic": logistic}


def quadrature(path: Flow, regularizer: Regularizer) -> Tensor:
    """The integral by Gauss and Legendre's rule over the closed forms."""
    torch.manual_seed(1)
    probe = torch.randn_like(path.y0)
    total = path.y0.new_zeros(())
    for node, weight in zip(*np.polynomial.legendre.leggauss(40), strict=True):
        t = (node + 1) / 2
        y = path.y(t)
        time = torch.tensor(t, dtype=torch.float64)
        rate = path.field(time, y) if isinstance(regularizer, Kinetic) else path.row(t, y, probe)
        total = total + weight / 2 * rate.square().mean()
    return total


def solved(path: Flow, regularizer: Regularizer, gradient: Gradient, solver: Solver) -> tuple[Tensor, Tensor]:
    """y(1) and the value."""
    torch.manual_seed(1)
    solution, value = regularizer.solve(gradient, solver, Problem(path.field, path.y0))
    return solution.y, value


def gradients(path: Flow, value: Tensor) -> Tensor:
    inputs = (path.y0, *path.field.parameters())
    found = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in found])


COMBINATIONS = [
    *((Dopri5(1e-9, 1e-9), gradient) for gradient in (*EXACT, Adjoint())),
    (Dopri5(1e-9, 1e-9, first_step=0.01), Checkpoint()),
    (RK4(num_steps=150), Backprop()),
    (TorchDiffEq("dopri5", 1e-9, 1e-9), Adjoint()),
]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("regularizer", [Kinetic(), Jacobian()], ids=name)
@pytest.mark.parametrize(("solver", "gradient"), COMBINATIONS, ids=name)
def test_an_integral_equals_its_quadrature(
    kind: str, regularizer: Regularizer, gradient: Gradient, solver: Solver
) -> None:
    path = PATHS[kind]()
    _, value = solved(path, regularizer, gradient, solver)
    truth = quadrature(path, regularizer)
    assert value.item() == pytest.approx(truth.item(), rel=1e-7)
    assert relative_error(gradients(path, value), gradients(path, truth)) < 1e-6


@pytest.mark.parametrize("regularizer", [Kinetic(), Jacobian()], ids=name)
def test_the_steps_are_those_without_a_regularizer(regularizer: Regularizer) -> None:
    """The state's error alone is controlled."""
    path, solver = linear(), Dopri5(1e-4, 1e-4)
    plain = solver.solve(Problem(path.field, path.y0))
    solution, _ = regularizer.solve(Backprop(), solver, Problem(path.field, path.y0))
    assert solution.stats == plain.stats
    assert relative_error(solution.y, plain.y) < 1e-14


WHOLE = [ReversibleSolver(Dopri5(1e-2, 1e-2)), TorchDiffEq("dopri5", 1e-2, 1e-2), TorchDiffEq("bosh3", 1e-2, 1e-2)]


@pytest.mark.parametrize("solver", WHOLE, ids=repr)
def test_a_solve_replayed_whole_takes_the_same_steps(solver: Solver) -> None:
    """Under the norm that leaves the integral out."""
    path = linear()
    (y1, value), (y2, other) = (solved(path, Kinetic(), gradient, solver) for gradient in (Backprop(), Checkpoint()))
    assert torch.equal(y1, y2)
    assert relative_error(gradients(path, value + y1.sum()), gradients(path, other + y2.sum())) < 1e-12


def test_hutchinsons_estimate_is_unbiased() -> None:
    field = Linear([[0.3, 1.0], [-4.0, -0.7]])
    y0 = torch.ones(20_000, 2, dtype=torch.float64)
    torch.manual_seed(0)
    _, value = Jacobian().solve(Backprop(), Midpoint(num_steps=1), Problem(field, y0))
    truth = field.matrix.square().sum().item() / 2
    # of |v^T A|^2 / 2 the sd is at most sqrt(2) |A|_F^2 / 2: four standard errors
    assert value.item() == pytest.approx(truth, rel=4 * 2**0.5 / 20_000**0.5)


class Drift(nn.Module):
    """dy/dt = 3, of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Parameter(torch.tensor(3.0))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift.expand_as(y)


@pytest.mark.parametrize("gradient", EXACT, ids=name)
@pytest.mark.parametrize("field", [Drift(), lambda t, y: torch.full_like(y, 3.0)], ids=["module", "function"])
def test_fields_that_do_not_depend_on_y(gradient: Gradient, field: Any) -> None:
    problem = Problem(field, torch.ones(3, 2))
    values = [kind().solve(gradient, RK4(num_steps=2), problem)[1].item() for kind in (Kinetic, Jacobian)]
    assert values == pytest.approx([9.0, 0.0])


@pytest.mark.parametrize("gradient", EXACT, ids=name)
@pytest.mark.parametrize("solver", [Dopri5(1e-4, 1e-4), Tsit5(1e-4, 1e-4, first_step=0.05)], ids=name)
def test_stiffness_of_a_decay_is_its_rate(gradient: Gradient, solver: Solver) -> None:
    """f is -rate y, so that each step's estimate is the rate."""
    y0 = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    field = Decay(1.3)
    solution, value = Stiffness().solve(gradient, solver, Problem(field, y0))
    assert solution.stats.accepted > 1
    assert value.item() == pytest.approx(1.3 * solution.stats.accepted, rel=1e-9)
    by_rate, by_y0 = torch.autograd.grad(value, (field.rate, y0))
    assert by_rate.item() == pytest.approx(solution.stats.accepted, rel=1e-9)
    assert float(by_y0.abs().max()) < 1e-9


def error_of_a_decay(solver: Dopri5 | Bosh3, rate: Tensor, y: Tensor, sizes: list[float]) -> Tensor:
    """The sum of |h| E over steps of dy/dt = -rate y, by the method's stability functions."""
    tableau = solver.tableau
    assert tableau.error is not None
    stages = len(tableau.error)
    a = torch.zeros(stages, stages, dtype=torch.float64)
    for i, row in enumerate((*tableau.a, tableau.b), 1):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    total = y.new_zeros(())
    for h in sizes:
        z = -rate * h  # stages k = rate y (1 - z a)^-1 1
        k = torch.linalg.solve(torch.eye(stages, dtype=torch.float64) - z * a, torch.ones(stages, dtype=torch.float64))
        error = z * (torch.tensor(tableau.error, dtype=torch.float64) @ k) * y
        y1 = y * (1 + z * (a[-1] @ k))
        total = (
            total + h * (error / (solver.atol + solver.rtol * torch.maximum(y.abs(), y1.abs()))).square().mean().sqrt()
        )
        y = y1
    return total


@pytest.mark.parametrize("gradient", EXACT, ids=name)
@pytest.mark.parametrize("solver", [Dopri5(1e-4, 1e-4, first_step=0.1), Bosh3(1e-3, 1e-4)], ids=name)
def test_the_error_estimate_is_the_solvers(gradient: Gradient, solver: Dopri5 | Bosh3) -> None:
    y0 = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    field = Decay(2.0)
    problem = Problem(field, y0)
    _, value = ErrorEstimate().solve(gradient, solver, problem)
    sizes: list[float] = []
    solver.solve(Problem(field, y0, observe=lambda step, y1, ks: sizes.append(float(step.h))))
    truth = error_of_a_decay(solver, field.rate, y0, sizes)
    assert len(sizes) > 1
    assert value.item() == pytest.approx(truth.item(), rel=1e-9)
    inputs = (field.rate, y0)
    pairs = zip(torch.autograd.grad(value, inputs), torch.autograd.grad(truth, inputs), strict=True)
    assert all(relative_error(found, expected) < 1e-8 for found, expected in pairs)


@pytest.mark.parametrize("regularizer", [ErrorEstimate(), Stiffness()], ids=name)
def test_a_state_that_stands_still_has_a_gradient(regularizer: Regularizer) -> None:
    y0, field = torch.ones(2, 3, dtype=torch.float64, requires_grad=True), Decay(0.0)
    _, value = regularizer.solve(Backprop(), Dopri5(), Problem(field, y0))
    found = torch.autograd.grad(value, (y0, field.rate))
    assert all(grad.isfinite().all() for grad in found)


@settings(max_examples=25, deadline=None)
@given(width=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
def test_a_random_end_is_within_its_width(width: float, seed: int) -> None:
    torch.manual_seed(seed)
    y0 = torch.tensor([[1.0]], dtype=torch.float64)
    solution, end = RandomEnd(width).solve(Backprop(), RK4(num_steps=50), Problem(Decay(1.3), y0))
    assert 1 - width <= end.item() <= 1 + width
    assert solution.y.item() == pytest.approx(float(torch.exp(-1.3 * end)), rel=1e-6)


def test_random_ends_are_spread_evenly() -> None:
    torch.manual_seed(0)
    problem = Problem(Decay(1.3), torch.ones(1, 1, dtype=torch.float64))
    ends = torch.stack([RandomEnd(0.4).solve(Backprop(), Midpoint(num_steps=1), problem)[1] for _ in range(2_000)])
    assert float(ends.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(ends.std()) == pytest.approx(0.8 / 12**0.5, rel=0.05)


def penalised(
    regularizer: Regularizer, gradient: Gradient, solver: Solver, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Value, and gradient of loss and value, of the post's network on a made-up batch."""
    torch.manual_seed(0)
    net = ODENet(channels=3, solver=solver, gradient=gradient).to(dtype).train()
    images = torch.randn(4, 1, 28, 28, dtype=dtype)
    with regularized(net, regularizer) as values:
        loss = F.cross_entropy(net(images).to(dtype), torch.arange(4))
    (value,) = values
    (loss + value).backward()
    return value, torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("first_step", ["heuristic", 0.4])
@pytest.mark.parametrize("regularizer", EVERY, ids=name)
def test_checkpoint_equals_backprop(regularizer: Regularizer, first_step: Any) -> None:
    solver = Dopri5(1e-3, 1e-3, first_step=first_step)
    (value, grads), *rest = (penalised(regularizer, g, solver, torch.float64) for g in EXACT)
    for other, others in rest:
        assert other.item() == pytest.approx(value.item(), rel=1e-12)
        assert relative_error(others, grads) < 1e-12


@pytest.mark.parametrize("regularizer", EVERY, ids=name)
def test_autocast_leaves_the_value_in_float32(regularizer: Regularizer) -> None:
    solver = Dopri5(1e-2, 1e-2, first_step=0.5)
    value, _ = penalised(regularizer, Backprop(), solver, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (half, grads), (other, others), _ = (penalised(regularizer, g, solver, torch.float32) for g in EXACT)
    assert half.dtype == torch.float32
    # a sum over steps measures rounding, too
    assert half.item() == pytest.approx(
        value.item(), rel=0.5 if isinstance(regularizer, ErrorEstimate | Stiffness) else 0.02
    )
    assert other.item() == pytest.approx(half.item(), rel=1e-2)
    assert relative_error(others, grads) < 0.05


def test_the_kernel_gives_the_operators_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = Dopri5(1e-2, 1e-2, first_step=0.5)
    for regularizer in EVERY:
        value, grads = penalised(regularizer, Backprop(), solver, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr("odenet_lightning.kernels.conv_field.library", lambda: None)
            other, others = penalised(regularizer, Backprop(), solver, torch.float32)
        assert value.item() == pytest.approx(other.item(), rel=1e-3), regularizer
        assert relative_error(grads, others) < 1e-3, regularizer


@pytest.mark.parametrize(
    ("regularizer", "gradient", "solver", "told"),
    [
        (ErrorEstimate(), Adjoint(), Dopri5(), "which Adjoint does not differentiate: use Backprop or Checkpoint"),
        (Stiffness(), Adjoint(), Dopri5(), "which Adjoint does not differentiate: use Backprop or Checkpoint"),
        (ErrorEstimate(), Backprop(), Midpoint(num_steps=1), r"not Midpoint\(num_steps=1\): use Dopri5 or Tsit5"),
        (Stiffness(), Backprop(), Dopri5(num_steps=2), "needs a solver with error control"),
        (ErrorEstimate(), Checkpoint(), TorchDiffEq(), "needs a solver with error control that shows its steps"),
        (Stiffness(), Backprop(), Bosh3(), "last stage is at the step's end: use Dopri5 or Tsit5"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_by_name(
    regularizer: Regularizer, gradient: Gradient, solver: Solver, told: str
) -> None:
    with pytest.raises(GradientError, match=f"{name(regularizer)} .*{told}"):
        regularizer.solve(gradient, solver, Problem(Decay(1.0), torch.ones(2, 2)))


@pytest.mark.slow
def test_jacobian_refuses_a_compiled_field() -> None:
    field = nn.Sequential(Decay(1.0))
    field[0].compile()
    with pytest.raises(GradientError, match="Jacobian needs: train without compile"):
        Jacobian().solve(Backprop(), Midpoint(num_steps=1), Problem(field, torch.ones(2, 2)))


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True])
@pytest.mark.parametrize("kind", [Kinetic, Jacobian, ErrorEstimate, Stiffness, RandomEnd])
def test_a_strength_is_a_positive_number(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="must be a positive number"):
        kind(value)


def test_an_end_stays_behind_the_start() -> None:
    with pytest.raises(ValueError, match="width must be less than 1"):
        RandomEnd(1.0)


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
