"""Refine a solver in training as long as an accurate one would change the predictions (`--is_ode.keep`).

Where a network's predictions depend on its solver, its steps are too long (Ott et al. 2021, arXiv:2007.15386).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odenet_lightning.certificate import CHUNK, accurate_solver, solved_by
from odenet_lightning.models import Classifier
from odenet_lightning.solvers import Reversible, RungeKutta, Solver, SolverError

MOST = 5  # levels: 32 times as many steps


def refined(solver: Solver, level: int) -> Solver:
    """The same solver with 2^level times as many steps, or with its tolerances divided by 10^level.

    Raises:
        ValueError: it has neither a number nor a size of steps nor tolerances.
    """
    settings = vars(solver)
    if isinstance(solver, Reversible):
        method = refined(solver.method, level)
        assert isinstance(method, RungeKutta)
        return Reversible(method, solver.coupling)
    if solver.controls_error and "rtol" in settings:
        return solver.with_tolerance(settings["rtol"] / 10**level, settings["atol"] / 10**level)
    if settings.get("num_steps"):
        return type(solver)(**{**settings, "num_steps": settings["num_steps"] * 2**level})
    if settings.get("step_size"):
        return type(solver)(**{**settings, "step_size": settings["step_size"] / 2**level})
    raise ValueError(f"is_ode.keep changes num_steps, step_size or tolerances, of which {solver!r} has none")


@torch.no_grad()
def probabilities(net: Classifier, images: Tensor) -> Tensor:
    """The class probabilities, `[N, K]`."""
    return torch.cat([net(chunk).softmax(1) for chunk in images.split(CHUNK)])


def variation(p: Tensor, q: Tensor) -> float:
    """The total variation distance between class probabilities, sum_k |p_k - q_k| / 2, averaged over the images.

    The probability that labels drawn from the two differ: no change of the expected accuracy is larger.
    """
    return float((p - q).abs().sum(1).mean() / 2)


def next_level(
    net: Classifier,
    images: Tensor,
    first: Solver,
    level: int,
    bound: float,
    mean: Callable[[float], float] = float,
) -> tuple[int, float]:
    """The level to train with next, chosen by how much an accurate solver changes the predictions.

    The change is the `variation` of the class probabilities between the two solvers. It needs no labels, and unlike a
    count of changed predictions it is smooth, so that 1,000 images are enough for a bound of one in 1,000.

    The level rises at once to the lowest within the bound: weights that are trained on with too few steps move to
    dynamics that no number of them solves. It falls by one where the level below is within half the bound.

    Args:
        net: the network, in evaluation mode.
        images: `[N, C, H, W]`, at least one.
        first: the solver at level 0.
        level: the present one.
        bound: the largest change, a share in (0, 1).
        mean: of a number over processes, so that all choose the same.

    Returns:
        The next level, at most 5, and the change on the present one: 1 where its solver cannot solve the ODE; NaN
        where the accurate one cannot, and then the level stays.
    """

    def solved(solver: Solver) -> Tensor | None:
        try:
            with solved_by(net, solver):
                return probabilities(net, images)
        except SolverError:
            return None

    def change(level: int) -> float:
        own = solved(refined(first, level))
        return mean(math.nan if truth is None else 1.0 if own is None else variation(own, truth))

    with solved_by(net, refined(first, level)):
        accurate = accurate_solver(net)
    truth = solved(accurate)
    present = change(level)
    if present > bound:
        finer = (finer for finer in range(level + 1, MOST) if change(finer) <= bound)
        return next(finer, MOST), present
    if level > 0 and present <= bound and change(level - 1) <= bound / 2:
        return level - 1, present
    return level, present
