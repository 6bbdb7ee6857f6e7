"""ODEBlock: a layer whose output is the state at t = 1 of an ODE that starts at its input."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from odenet_lightning.gradients import Gradient
from odenet_lightning.solvers import MAX_NFE, Problem, Solver, SolveStats
from odenet_lightning.solvers.settings import check_whole

SolveHook = Callable[[SolveStats], None]


class ODEBlock(nn.Module):
    """y(0) -> y(1) for dy/dt = field(t, y) over t in [0, 1]; the shape stays.

    The continuous analogue of a stack of residual blocks with shared weights (Chen et al. 2018,
    arXiv:1806.07366). The state is float32 (or float64) whatever the autocast: half precision is
    for the field alone, since step control in 16 bits would see nothing but rounding.

    A block within another block's field starts each of its solves with the heuristic first step, so that the
    outer field stays a function of t and y.

    Args:
        field: f(t, y), shape-preserving.
        solver: how to solve it.
        gradient: how to differentiate the solve.
        max_nfe: most evaluations a solve may cost before `SolverError`.

    Attributes:
        warm_step: first step to try, in units of t, for solvers with `first_step="warm"`: updated
            in training only. Not part of the state dict; checkpoints keep it beside (`warm_steps`).
    """

    def __init__(self, field: nn.Module, solver: Solver, gradient: Gradient, max_nfe: int = MAX_NFE) -> None:
        super().__init__()
        check_whole("max_nfe", max_nfe)
        self.field, self.solver, self.gradient, self.max_nfe = field, solver, gradient, max_nfe
        self.warm_step: float | None = None
        self.is_inner = False
        for inner in ode_blocks(field):
            inner.is_inner, inner.warm_step = True, None
        self._solve_hooks: OrderedDict[int, SolveHook] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy: everything but the solve hooks."""
        return {**vars(self), "_solve_hooks": OrderedDict()}

    def extra_repr(self) -> str:
        """The parts that are no modules."""
        return f"solver={self.solver!r}, gradient={self.gradient!r}"

    def forward(self, y: Tensor) -> Tensor:
        """Return y(1), with the shape of the input y(0).

        Raises:
            SolverError, FieldError, GradientError: see `Gradient.solve`.
        """
        return self._solve(y)  # pyright: ignore -- torch types the decorator as another thing

    # The loop over steps stays in Python: if it were traced, each new number of steps would compile a new graph.
    @torch.compiler.disable
    def _solve(self, y: Tensor) -> Tensor:
        problem = Problem(self.field, self._state(y), warm_step=self.warm_step, max_nfe=self.max_nfe)
        solution = self.gradient.solve(self.solver, problem)
        self.tell(solution.stats)
        return solution.y

    def tell(self, stats: SolveStats) -> None:
        """Take note of a solve: of its warm step, in training, and for all hooks."""
        if self.training and not self.is_inner:
            self.warm_step = stats.next_step
        for hook in self._solve_hooks.values():
            hook(stats)

    @staticmethod
    def _state(y: Tensor) -> Tensor:
        """In float32 at least; a complex state is passed on, for the solver to refuse."""
        return y if y.dtype in (torch.float32, torch.float64) or y.is_complex() else y.float()

    def register_solve_hook(self, hook: SolveHook) -> RemovableHandle:
        """Have a function called after each forward solve with its `SolveStats`.

        `stats.backward` is filled in during `backward()`: when the hook is called, its counts are still zero.

        Returns:
            A handle whose `remove()` ends it.
        """
        handle = RemovableHandle(self._solve_hooks)
        self._solve_hooks[handle.id] = hook
        return handle

    def compile_field(self) -> None:
        """Have torch.compile run the field, in place: state-dict keys stay, and any solver and gradient benefits."""
        self.field.compile()

    @torch.no_grad()
    def trajectory(self, y: Tensor, times: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> Tensor:
        """States at the given times of a solve from y, `[T, *y.shape]`; no hook is told of it."""
        problem = Problem(self.field, self._state(y), warm_step=self.warm_step, max_nfe=self.max_nfe)
        return self.solver.trajectory(problem, times)


def ode_blocks(module: nn.Module) -> list[ODEBlock]:
    """A network's ODE blocks in order, those within another block's field left out."""
    return [m for m in module.modules() if isinstance(m, ODEBlock) and not m.is_inner]


def warm_steps(net: nn.Module) -> list[float | None]:
    """The first step that each ODE block would try next, as a checkpoint keeps it."""
    return [block.warm_step for block in ode_blocks(net)]


def set_warm_steps(net: nn.Module, steps: Sequence[float | None]) -> None:
    """Have each ODE block start its next solve with the step given for it."""
    for block, step in zip(ode_blocks(net), steps, strict=False):
        block.warm_step = step


@contextmanager
def recorded_solves(net: nn.Module) -> Iterator[list[SolveStats]]:
    """Collect the cost of every solve of a network's ODE blocks, in order."""
    solves: list[SolveStats] = []
    handles = [block.register_solve_hook(solves.append) for block in ode_blocks(net)]
    try:
        yield solves
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def withheld_solves(net: nn.Module) -> Iterator[list[tuple[ODEBlock, SolveStats]]]:
    """Collect the cost of every solve of a network's ODE blocks, in order, without calling their hooks."""
    solves: list[tuple[ODEBlock, SolveStats]] = []
    withheld = [(block, block._solve_hooks) for block in ode_blocks(net)]
    for block, _ in withheld:
        block._solve_hooks = OrderedDict({0: lambda stats, block=block: solves.append((block, stats))})
    try:
        yield solves
    finally:
        for block, hooks in withheld:
            block._solve_hooks = hooks
