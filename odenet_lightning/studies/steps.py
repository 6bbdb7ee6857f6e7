"""What does a training step cost? This project's steps against each other, and those of other libraries."""

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from odenet_lightning.block import recorded_solves
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Backprop, Checkpoint, Gradient
from odenet_lightning.kernels import library
from odenet_lightning.models import ODENet
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.columns import Column, percent
from odenet_lightning.studies.in_jax import jitted_step
from odenet_lightning.studies.other_libraries import Block, by_torchdiffeq, by_torchode, in_operators
from odenet_lightning.studies.pairs import PairStudy, Way
from odenet_lightning.studies.study import Row, number

WARM, HEURISTIC, CHECKPOINT = "Dopri5, warm first step", "Dopri5, heuristic first step", "Dopri5, warm, Checkpoint"
OPERATORS, COMPILED = "Dopri5, warm, PyTorch's operators", "Dopri5, warm, compiled"
PARTS = "the same evaluations, stem and head"
ADJOINT, BACKPROP, TORCHODE = "torchdiffeq odeint_adjoint", "torchdiffeq odeint", "torchode AutoDiffAdjoint"
DIFFRAX = "diffrax, jitted"
FIELD, FIELD_OPERATORS = "one evaluation, kernel", "one evaluation, PyTorch's operators"
EXTRAS = {TORCHODE: "torchode", DIFFRAX: "diffrax"}  # and the package that each needs

# A, B and the tolerance, rtol = atol; the post solves at 0.1 with odeint_adjoint
PAIRS = (
    *((WARM, ADJOINT, 0.1), (WARM, BACKPROP, 1e-3), (WARM, TORCHODE, 1e-3), (WARM, DIFFRAX, 0.1)),
    *((WARM, OPERATORS, 0.1), (FIELD, FIELD_OPERATORS, 0.1), (WARM, PARTS, 0.1)),
    *((CHECKPOINT, WARM, 0.1), (BACKPROP, ADJOINT, 0.1), (HEURISTIC, BACKPROP, 0.1), (WARM, HEURISTIC, 0.1)),
    (COMPILED, WARM, 0.1),
)


def multiply_adds(field: ConvField, state: Tensor) -> int:
    """Of one evaluation's convolution and its two derivatives; norms and relu are a few per cent of it."""
    return 3 * state.numel() * field.conv.weight[0].numel()


def peak() -> float:
    """Multiply-adds in float32 that this process's threads can do in a second, the best of five tries."""
    kernel = library()
    if kernel is None:
        return float("nan")
    rates = []
    for _ in range(5):
        begin = time.perf_counter()
        done = kernel.multiply_adds(200_000)
        rates.append(done / (time.perf_counter() - begin))
    return max(rates) * torch.get_num_threads()


@dataclass
class Steps(PairStudy):
    """A step of SGD on the post's network (`ODENet`), forward, backward and update, two ways in turn.

    Both have the same untrained weights and the same digits. Libraries solve with their dopri5 at the same tolerances
    and are given the field in PyTorch's operators; torchode, whose steps are controlled image by image, and diffrax,
    which is JAX's, are measured when they are installed. `share` is what A's convolutions in the field, forward and
    backward, take of the multiply-adds that the threads could do in the time.

    Args:
        batch_sizes: images per step.
        compile: also time the compiled step, which takes minutes.
    """

    batch_sizes: list[int] = field(default_factory=lambda: [16, 128])
    repeats: int = 31
    compile: bool = False

    warm_up: ClassVar[int] = 4
    work: ClassVar[str] = "a training step"
    quick: ClassVar[dict[str, Any]] = {"batch_sizes": [16], "repeats": 7}
    sweeps: ClassVar[tuple[str, ...]] = ("batch_sizes", "compile")
    columns: ClassVar[tuple[Column, ...]] = (
        *PairStudy.columns[:2],
        Column("rtol", "rtol", says="tolerance, rtol = atol"),
        *PairStudy.columns[2:],
        Column("share", form=percent, says="of the multiply-adds that the threads could do in the time of A"),
    )

    def cases(self) -> list[Row]:
        """Every pair at every batch size."""
        left_out = {COMPILED} if not self.compile else set()
        left_out |= {name for name, package in EXTRAS.items() if not importlib.util.find_spec(package)}
        left_out |= {DIFFRAX} if self.device != "cpu" else set()
        return [
            {"a": a, "b": b, "batch": size, "rtol": rtol}
            for a, b, rtol in PAIRS
            for size in self.batch_sizes
            if not {a, b} & left_out
        ]

    def ways(self, case: Row) -> tuple[Way, Way]:
        """Two kinds of step."""
        size, rtol = int(number(case, "batch")), number(case, "rtol")
        first, second = (self._way(str(case[key]), size, rtol) for key in ("a", "b"))
        return first, second

    def measure(self, case: Row) -> Row:
        """Time both in turn, and say how much of the machine A uses."""
        row = super().measure(case)
        size, rtol = int(number(case, "batch")), number(case, "rtol")
        net = self._net(rtol, first_step="heuristic" if case["a"] == HEURISTIC else "warm")
        state = net.stem(self.images("train", self.chosen("train", size))[0]).detach()
        evaluations = 1 if case["a"] == FIELD else self._evaluations(net, state)
        field = net.block.field
        assert isinstance(field, ConvField)
        done = evaluations * multiply_adds(field, state) / number(row, "a_ms") * 1e3
        share = done / peak() if self.device == "cpu" else float("nan")
        return {**row, "share": share if math.isfinite(share) else None}

    def _evaluations(self, net: ODENet, state: Tensor) -> int:
        """Of a solve after the warm-up."""
        with recorded_solves(net) as solves:
            for _ in range(self.warm_up):
                net.block(state)
        return int(solves[-1].evaluations)

    def _way(self, name: str, size: int, rtol: float) -> Way:
        if name in (FIELD, FIELD_OPERATORS):
            return self._evaluation(name == FIELD, size)
        if name == DIFFRAX:
            jitted = jitted_step(self._net(rtol), *self.images("train", self.chosen("train", size)), rtol)
            return self._timed(jitted)
        if name in (ADJOINT, BACKPROP, TORCHODE):
            net = self._net(rtol)
            solve = by_torchode(net, rtol) if name == TORCHODE else by_torchdiffeq(net, rtol, name == ADJOINT)
            return self._step(net, size, solve)
        if name == PARTS:
            return self._parts(size, rtol)
        gradient = Checkpoint() if name == CHECKPOINT else Backprop()
        net = self._net(rtol, gradient, "heuristic" if name == HEURISTIC else "warm")
        if name == COMPILED:
            net.block.compile_field()
        if name == OPERATORS:
            net.block.field = in_operators(net)
        return self._step(net, size)

    def _evaluation(self, by_kernel: bool, size: int) -> Way:
        """The field, forward and backward."""
        net = self._net(0.1)
        state = net.stem(self.images("train", self.chosen("train", size))[0]).detach().requires_grad_()
        field = net.block.field if by_kernel else in_operators(net)
        inputs = (state, *field.parameters())
        cotangent, zero = torch.ones_like(state), torch.zeros((), device=state.device)

        def step() -> None:
            torch.autograd.grad(field(zero, state), inputs, cotangent)

        return self._timed(step)

    def _net(
        self, rtol: float, gradient: Gradient | None = None, first_step: Literal["warm", "heuristic"] = "warm"
    ) -> ODENet:
        torch.manual_seed(self.seed)
        return ODENet(solver=Dopri5(rtol, rtol, first_step=first_step), gradient=gradient).to(self.device)

    def _step(self, net: ODENet, size: int, block: Block | None = None) -> Way:
        """A step, the ODE block's output by `block` where given."""
        images, labels = self.images("train", self.chosen("train", size))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            y = net.stem(images)
            F.cross_entropy(net.head((block or net.block)(y)), labels).backward()
            optimizer.step()

        return self._timed(step)

    def _timed(self, step: Callable[[], object]) -> Way:
        def way() -> float:
            begin = time.perf_counter()
            step()
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()
            return (time.perf_counter() - begin) * 1e3

        return way

    def _parts(self, size: int, rtol: float) -> Way:
        """The necessary work of a step: its evaluations of the field, each forward and backward, stem and head."""
        net = self._net(rtol)
        warm = self._step(net, size)
        with recorded_solves(net) as solves:
            for _ in range(self.warm_up):
                warm()
        state = net.stem(self.images("train", self.chosen("train", size))[0]).detach().requires_grad_()
        cotangent, zero = torch.ones_like(state), torch.zeros((), device=state.device)
        rest = self._step(net, size, lambda y: y)

        def step() -> None:
            rest()
            for _ in range(int(solves[-1].evaluations)):
                torch.autograd.grad(net.block.field(zero, state), (state, *net.block.field.parameters()), cotangent)

        return self._timed(step)
