"""Whether a field computes each image's dy/dt from its own time and state alone, as `per_sample` needs."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from odenet_lightning.solvers.evaluation import FieldError, evaluate, host_values, name_of, random_states
from odenet_lightning.solvers.problem import Problem, VectorField

# how far an image's dy/dt may differ, relative to the largest: rounding of other kernels, in 16 bits under autocast
AGREEMENT, AUTOCAST_AGREEMENT = 1e-3, 1e-1
_solves: "WeakKeyDictionary[Any, dict[bool, int]]" = WeakKeyDictionary()  # of each field, by its `training`


def refuse_shared_time(problem: Problem) -> None:
    """Refuse a field that mixes images or their times; three evaluations of one or two images.

    Looks at a field's solves 1, 2, 4, 8, ...: what mixes may have a weight that starts at zero.
    Compares f of two images at two times, given as `[2, 1, ...]`, with f of each image at its time, a scalar.
    """
    field = problem.field
    if getattr(field, "of_each_image", False):
        return
    solves, mode = solves_of(field), bool(getattr(field, "training", False))
    solves[mode] = solves.get(mode, 0) + 1
    if solves[mode].bit_count() > 1:
        return
    y = problem.y0.detach()
    y = torch.cat([y[:1], y[-1:] / 2])
    random = random_states(y.device)
    times = torch.tensor([0.25, 0.75], dtype=torch.float64) * (problem.t1 - problem.t0) + problem.t0
    t = times.to(y.dtype).to(y.device).view(-1, *[1] * (y.dim() - 1))
    try:
        with torch.no_grad():
            both = evaluate(field, t, y)
            alone = torch.cat(
                [evaluate(field, float(time), image) for time, image in zip(times, y.split(1), strict=True)]
            )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise refusal(field, f"it fails: {str(error).strip().splitlines()[0]}") from error
    if not all(map(torch.equal, random, random_states(y.device))):
        return  # a random field: `refusing_randomness` reports it
    autocast = torch.is_autocast_enabled(y.device.type)
    # in one transfer, which refuses torch.func
    apart, largest = host_values(torch.stack([(both - alone).abs().max(), alone.abs().max()])).tolist()
    off = apart / largest if largest else apart
    if off > (AUTOCAST_AGREEMENT if autocast else AGREEMENT):
        raise refusal(field, f"an image's dy/dt then differs by {off:.1%} from that of the image alone")
    if off != off or not largest:  # NaN and zeros decide nothing: the next solve is looked at, too
        solves[mode] = 0


def solves_of(field: VectorField) -> dict[bool, int]:
    """Numbers of solves of a field in evaluation and in training; none of one that cannot be remembered."""
    try:
        return _solves.setdefault(field, {})
    except TypeError:  # not hashable (a dataclass), or without weak references (__slots__)
        return {}


def refusal(field: VectorField, why: str) -> FieldError:
    """The error, with what to do."""
    return FieldError(
        f"{name_of(field)} cannot be evaluated for each image at its own time, t of shape [B, 1, ...], as per_sample "
        f"needs: {why}. Let t broadcast (t * y, t.expand_as(y[:, :1])) and no image depend on another (no BatchNorm in "
        "training), or leave per_sample out (in validate, test and predict: --evaluation.per_sample false)"
    )
