"""ODEBlock: a layer whose output is the state at t = 1 of an ODE that starts at its input."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odenet_lightning.gradients import BackwardStats, Gradient
from odenet_lightning.solvers import MAX_NFE, Solver, SolveStats


@dataclass(frozen=True)
class SolveRecord:
    """One solve of a block: what it cost, and what its way back cost (None where that is free)."""

    forward: SolveStats
    backward: BackwardStats | None


class ODEBlock(nn.Module):
    """y(0) -> y(1) for dy/dt = field(t, y) over t in [0, 1]; the shape stays.

    The continuous analogue of a stack of residual blocks with shared weights (Chen et al. 2018,
    arXiv:1806.07366). The state is float32 (or float64) whatever the autocast: half precision is
    for the field alone, since step control in 16 bits would see nothing but rounding.

    Args:
        field: f(t, y), shape-preserving.
        solver: how to solve it.
        gradient: how to differentiate the solve.
        max_nfe: most evaluations a solve may cost before `SolverError`.

    Attributes:
        solves: a record of each solve since `forget_solves`, at most the last 64.
        warm_step: first step to try, in units of t, for solvers with `first_step="warm"`: updated
            in training only. Not part of the state dict; `ClassifierModule` saves it beside.
    """

    def __init__(self, field: nn.Module, solver: Solver, gradient: Gradient, max_nfe: int = MAX_NFE) -> None:
        super().__init__()
        if max_nfe < 1:
            raise ValueError(f"max_nfe must be at least 1, not {max_nfe!r}")
        self.field, self.solver, self.gradient, self.max_nfe = field, solver, gradient, max_nfe
        self.warm_step: float | None = None
        self.solves: list[SolveRecord] = []

    def extra_repr(self) -> str:
        """The parts that are no modules."""
        return f"solver={self.solver!r}, gradient={type(self.gradient).__name__}"

    def forward(self, y: Tensor) -> Tensor:
        """Return y(1), with the shape of the input y(0).

        Raises:
            SolverError: the solve cannot be finished.
        """
        return self._solve(y)  # pyright: ignore -- torch types the decorator as another thing

    # The loop over steps and its counts are Python's business: traced, each new count would be a new graph.
    @torch.compiler.disable
    def _solve(self, y: Tensor) -> Tensor:
        if y.dtype not in (torch.float32, torch.float64):
            y = y.float()
        result = self.gradient.integrate(self.solver, self.field, y, warm_step=self.warm_step, max_nfe=self.max_nfe)
        if self.training:
            self.warm_step = result.stats.next_step
        self.solves = [*self.solves[-63:], SolveRecord(result.stats, result.backward)]
        return result.y

    def compile_solve(self) -> None:
        """Have torch.compile run what pays of the solve: in place, so that state-dict keys stay."""
        self.solver.compile(self.field)

    def forget_solves(self) -> None:
        """Empty the record of solves."""
        self.solves = []

    @torch.no_grad()
    def trajectory(self, y: Tensor, times: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> Tensor:
        """States at the given times of a solve from y, `[T, *y.shape]`; counted nowhere."""
        y = y if y.dtype == torch.float64 else y.float()
        return self.solver.trajectory(self.field, y, times, self.warm_step)
