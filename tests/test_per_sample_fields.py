"""Which fields can be solved image by image, and which are refused."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odenet_lightning.block import ODEBlock
from odenet_lightning.gradients import Backprop
from odenet_lightning.solvers import (
    Dopri5,
    FieldError,
    Midpoint,
    Problem,
    SolverError,
)
from tests.problems import relative_error
from tests.spin import Spin, states


class Whole(nn.Module):
    """Fields that cannot be evaluated for each image by itself, each in its own way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm = way, nn.BatchNorm1d(2).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.way == "number":
            return -y * float(t)
        if self.way == "branch":
            return -y if t > 0.5 else y
        if self.way == "shape":
            return -y * t.view(1)
        if self.way == "mean time":
            return -y * t.mean()
        return self.norm(y) if self.way == "batch norm" else -y * (1 + y.mean())


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("way", ["number", "branch", "shape", "mean time", "batch norm", "mean state"])
def test_a_field_that_mixes_images_is_refused_by_name(way: str, count: int) -> None:
    problem = Problem(Whole(way), states(count))
    for _ in range(2):
        with pytest.raises(FieldError, match=r"Whole cannot be evaluated for each image at its own time.*broadcast"):
            Dopri5(per_sample=True).solve(problem)
    if way not in ("batch norm",) or count > 1:
        Midpoint(num_steps=2).solve(problem)  # others may take it


def test_a_field_that_starts_as_zero_is_looked_at_again() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.gain * (y - y.mean(0))

    field, solver = Centred(), Dopri5(per_sample=True)
    problem = Problem(field, torch.tensor([[1.0], [2.0], [4.0]]))
    assert torch.equal(solver.solve(problem).y, problem.y0)
    nn.init.ones_(field.gain)
    with pytest.raises(FieldError, match="Centred cannot be evaluated for each image"):
        solver.solve(problem)


def test_a_part_that_starts_to_mix_images_in_training_is_found() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -y + self.gain * y.mean(0)

    field, solver = Drawn(), Dopri5(per_sample=True)
    problem = Problem(field, torch.tensor([[1.0], [2.0], [4.0]]))
    for gain in (0, 0, 0, 0, 0, 1, 1):  # the eighth solve is looked at again
        nn.init.constant_(field.gain, gain)
        solver.solve(problem)
    with pytest.raises(FieldError, match="Drawn cannot be evaluated for each image"):
        solver.solve(problem)


class Slotted:
    __slots__ = ()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


@dataclass
class Rate:
    rate: float = 1.0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


@pytest.mark.parametrize("field", [Slotted(), Rate()], ids=["without weak references", "not hashable"])
def test_any_object_may_be_a_field(field: Any) -> None:
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    assert relative_error(Dopri5(1e-6, 1e-6, per_sample=True).solve(Problem(field, y0)).y, y0 / math.e) < 1e-5


def test_batch_norm_is_taken_in_evaluation_only() -> None:
    field, y0 = Whole("batch norm").eval(), states()
    Dopri5(per_sample=True).solve(Problem(field, y0))
    with pytest.raises(FieldError, match="BatchNorm"):
        Dopri5(per_sample=True).solve(Problem(field.train(), y0))


@pytest.mark.parametrize(
    ("field", "options", "limit", "why"),
    [
        (lambda t, y: torch.where(y > 1, y * torch.nan, y), {}, 10_000, "image 2 .*NaN or infinite"),
        (lambda t, y: torch.where(y > 1, y * torch.nan, y), {"first_step": 0.1}, 10_000, "image 2 .*NaN or infinite"),
        (lambda t, y: 3 * y * y, {}, 10_000, "image [12] .*(too small|NaN or infinite|max_steps)"),
        (lambda t, y: torch.cos(99 * t) * y, {"max_steps": 3}, 10_000, "max_steps = 3 .* a larger max_steps"),
        (lambda t, y: torch.cos(99 * t) * y, {}, 30, "max_nfe = 30 .* a larger max_nfe"),
    ],
    ids=["nan", "nan later", "blow-up", "max_steps", "max_nfe"],
)
def test_solver_error_names_the_image(field: Any, options: Any, limit: int, why: str) -> None:
    y0 = torch.tensor([[0.1], [0.9], [1.5]], dtype=torch.float64)
    with pytest.raises(SolverError) as error:
        Dopri5(1e-6, 1e-6, per_sample=True, **options).solve(Problem(field, y0, max_nfe=limit))
    assert re.search(why, str(error.value)), error.value


def test_vmap_is_refused() -> None:
    block = ODEBlock(Spin(), Dopri5(first_step=0.3, per_sample=True), Backprop())
    for _ in range(4):  # solves at which the field is looked at, and one at which it is not
        with pytest.raises(FieldError, match=r"torch\.func"):
            torch.vmap(lambda y: block(y[None])[0])(states())
