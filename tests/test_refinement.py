"""The number of steps that an ODE needs: against closed forms, in runs, resumed ones, and several processes."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, Trainer
from torch import Tensor

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet, ResNet
from odenet_lightning.block import ODEBlock
from odenet_lightning.callbacks import CoarseStart, IsODE, Resume
from odenet_lightning.cli import main
from odenet_lightning.gradients import Backprop
from odenet_lightning.models import Composed
from odenet_lightning.refinement import MOST, next_level, refined
from odenet_lightning.solvers import RK4, Bosh3, Dopri5, Euler, Midpoint, Reversible, Solver, TorchDiffEq
from tests.problems import ANGLE, Exploding, network, points
from tests.training import FewDigits, sgd, trainer_in


@given(level=st.integers(0, MOST), steps=st.integers(1, 9), size=st.floats(0.01, 1.0), tolerance=st.floats(1e-3, 0.5))
def test_steps_double_and_tolerances_shrink(level: int, steps: int, size: float, tolerance: float) -> None:
    assert refined(Midpoint(num_steps=steps), level) == Midpoint(num_steps=steps * 2**level)
    assert refined(Midpoint(step_size=size), level) == Midpoint(step_size=size / 2**level)
    assert refined(Bosh3(num_steps=steps), level) == Bosh3(num_steps=steps * 2**level)
    assert refined(Reversible(Midpoint(num_steps=steps), 0.9), level) == Reversible(
        Midpoint(num_steps=steps << level), 0.9
    )
    assert refined(Dopri5(tolerance, 2 * tolerance), level) == Dopri5(tolerance / 10**level, 2 * tolerance / 10**level)


def test_a_solver_without_steps_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="has none"):
        refined(TorchDiffEq("euler", options={"step_size": 0.5}), 1)


def turned(matrix: Tensor) -> Tensor:
    return (points(720).double() @ matrix.T).softmax(1)


def expected_change(level: int) -> float:
    """Of Euler's method for a rotation: (I + A / n)^n against exp(A), in the probabilities of the coordinates."""
    matrix = torch.tensor([[0.0, -ANGLE], [ANGLE, 0.0]], dtype=torch.float64)
    n = 2**level
    own = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) + matrix / n, n)
    return float((turned(own) - turned(torch.linalg.matrix_exp(matrix))).abs().sum(1).mean() / 2)


@pytest.mark.parametrize("level", range(MOST + 1))
@pytest.mark.parametrize(("factor", "expected"), [(0.3, 2), (0.99, 1), (1.01, 0), (1.99, 0), (9.0, -1)])
def test_the_next_level(level: int, factor: float, expected: int) -> None:
    """The error of Euler's method halves with its step, so half the steps are within half the bound from 4 times on.

    Where too large for the bound, as many doublings are made as it takes.
    """
    bound = factor * expected_change(level)
    found, change = next_level(network(Euler(num_steps=1)), points(720), Euler(num_steps=1), level, bound)
    assert found == min(max(level + expected, 0), MOST)
    assert change == pytest.approx(expected_change(level), rel=0.02, abs=1e-4)


def test_a_solver_that_fails_is_too_coarse() -> None:
    """More evaluations than allowed count as a change of everything; where the accurate one fails, nothing changes."""
    net = network(Euler(num_steps=1))
    net.ode_blocks[0].max_nfe = 60
    assert next_level(net, points(8), Euler(num_steps=64), 0, 0.5) == (MOST, 1.0)
    net.ode_blocks[0].max_nfe = 2
    level, change = next_level(net, points(8), Euler(num_steps=1), 1, 1e-9)
    assert (level, math.isnan(change)) == (1, True)


def test_a_field_that_cannot_be_solved_leaves_the_level() -> None:
    net = Composed(torch.nn.Identity(), torch.nn.Identity(), ODEBlock(Exploding(), Euler(num_steps=1), Backprop()))
    level, change = next_level(net, torch.ones(4, 2), Euler(num_steps=1), 2, 1e-3)
    assert (level, math.isnan(change)) == (2, True)
    assert net.ode_blocks[0].solver == Euler(num_steps=1)


def test_processes_choose_by_their_mean() -> None:
    """The images here need no more than the present steps; those elsewhere do."""
    bound = 1.5 * expected_change(0)
    net, first = network(Euler(num_steps=1)), Euler(num_steps=1)
    assert next_level(net, points(720), first, 0, bound)[0] == 0
    assert next_level(net, points(720), first, 0, bound, lambda value: 2 * value)[0] == 1


class Steps(Callback):
    """The number of steps of every training and validation batch, epoch by epoch."""

    def __init__(self) -> None:
        self.train: list[int] = []
        self.val: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        self.train.append(pl_module.net.ode_blocks[0].solver.num_steps)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        if not trainer.sanity_checking:
            self.val.append(pl_module.net.ode_blocks[0].solver.num_steps)


def fit(
    folder: Path,
    epochs: int,
    *callbacks: Callback,
    solver: Solver | None = None,
    keep: float | None = 1e-4,
    **options: Any,
) -> tuple[Trainer, Steps]:
    """Train on 4 batches of made-up images an epoch."""
    torch.manual_seed(0)
    module = ClassifierModule(ODENet(2, solver=solver or Euler(num_steps=1)), sgd(0.01), "constant")
    steps = Steps()
    trainer = trainer_in(folder, max_epochs=epochs, callbacks=[Resume(), *callbacks, IsODE(12, keep), steps])
    trainer.fit(module, FewDigits(), **options)
    return trainer, steps


def test_steps_are_chosen_before_a_validation_and_hold_from_then_on(tmp_path: Path) -> None:
    _, steps = fit(tmp_path, 4)
    assert steps.val == [32] * 8, "as many as it takes, at once"
    assert steps.train == [1] * 4 + [32] * 12
    _, steps = fit(tmp_path, 2, keep=90.0)
    assert steps.val + steps.train == [1] * 12


def test_steps_fall_again_but_not_below_the_start(tmp_path: Path) -> None:
    class Loosen(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            keep.keep = 1e-4 if trainer.current_epoch < 2 else 90.0

    keep, steps = IsODE(12, 1e-4), Steps()
    module = ClassifierModule(ODENet(2, solver=Euler(num_steps=2)), sgd(0.01), "constant")
    trainer_in(tmp_path, max_epochs=8, callbacks=[Loosen(), keep, steps]).fit(module, FewDigits())
    assert steps.val[::2] == [64, 64, 32, 16, 8, 4, 2, 2]


def test_a_coarse_start_goes_on_until_its_end(tmp_path: Path) -> None:
    _, steps = fit(tmp_path, 3, CoarseStart(Euler(num_steps=1), epochs=1.5), solver=Euler(num_steps=2))
    assert steps.train == [1] * 6 + [64] * 6
    assert steps.val == [64] * 6


def test_a_resumed_run_continues_with_its_steps(tmp_path: Path) -> None:
    whole, expected = fit(tmp_path, 3)
    fit(tmp_path, 1)[0].save_checkpoint(tmp_path / "one.ckpt")
    resumed, found = fit(tmp_path, 3, ckpt_path=tmp_path / "one.ckpt")
    assert expected.train[4:] == found.train
    assert expected.val[2:] == found.val
    for one, other in zip(whole.lightning_module.parameters(), resumed.lightning_module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_solver_starts_afresh(tmp_path: Path) -> None:
    fit(tmp_path, 1)[0].save_checkpoint(tmp_path / "one.ckpt")
    _, steps = fit(tmp_path, 2, solver=RK4(num_steps=1), ckpt_path=tmp_path / "one.ckpt", keep=90.0)
    assert steps.train == [1] * 4


def test_a_bound_that_nothing_exceeds_changes_nothing(tmp_path: Path) -> None:
    """Neither weights nor random numbers."""
    found = []
    for keep in (99.0, None):
        trainer, _ = fit(tmp_path, 2, keep=keep)
        found.append([*trainer.lightning_module.parameters(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("images", "keep"), [(0, 0.1), (10, 0.0), (10, 100.0), (10, float("nan"))])
def test_impossible_bounds_are_refused(images: int, keep: float) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        IsODE(images, keep)


def test_networks_that_it_does_not_suit(tmp_path: Path) -> None:
    solvers = (Euler(num_steps=1), Euler(num_steps=2))
    blocks = [ODEBlock(ODENet(2).block.field, solver, Backprop()) for solver in solvers]
    whole = ODENet(2)
    net = Composed(whole.stem, whole.head, torch.nn.Sequential(*blocks))
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[IsODE(12, 0.1)])
    with pytest.raises(ValueError, match="ODE blocks have the same solver"):
        trainer.fit(ClassifierModule(net), FewDigits())
    module = ClassifierModule(ODENet(2, solver=Euler(num_steps=1)))
    module.hparams["net"] = {"class_path": "mine.Net", "init_args": {}}
    with pytest.raises(ValueError, match="needs a network with an argument solver"):
        trainer_in(tmp_path, max_epochs=1, callbacks=[IsODE(12, 0.1)]).fit(module, FewDigits())
    trainer_in(tmp_path, max_epochs=1, callbacks=[IsODE(12, 0.1)]).fit(ClassifierModule(ResNet(2, 1)), FewDigits())


def test_checkpoints_keep_the_steps(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, for the default network: what is loaded is what was validated."""
    few = ["--data.root", str(sample_root), "--data.source", "sample", "--trainer.accelerator", "cpu"]
    short = ["--trainer.limit_train_batches", "4", "--trainer.max_epochs", "2", "--is_ode.images", "70"]
    start = ["--model.net.channels", "2", "--model.net.solver", "Euler", "--model.net.solver.num_steps", "1"]
    main(["fit", *few, *short, *start, "--is_ode.keep", "0.3"])
    said = capsys.readouterr().out
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    net = ClassifierModule.load_from_checkpoint(path).net
    steps = vars(net.ode_blocks[0].solver)["num_steps"]
    assert steps > 1
    assert steps == [int(n) for n in re.findall(r"from here on Euler\(num_steps=(\d+)\)", said)][-1]


class RankSteps(Steps):
    """Leaves them in a file, since processes share nothing else."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        torch.save(self.train, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def test_two_processes_choose_as_one(tmp_path: Path, sample_root: Path) -> None:
    """By all 500 validation images, of which each process has half."""
    for processes in (1, 2):
        torch.manual_seed(0)
        module = ClassifierModule(ODENet(2, solver=Euler(num_steps=1)), sgd(0.02), "constant")
        trainer_in(
            tmp_path,
            max_epochs=2,
            limit_train_batches=10,
            devices=processes,
            strategy="ddp_fork" if processes > 1 else "auto",
            callbacks=[IsODE(500, 0.5), RankSteps(tmp_path)],
        ).fit(module, MNISTDataModule(str(sample_root), "sample", batch_size=32 // processes, augment=False))
    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert two == [one, one]
    assert one[-1] > one[0]
