"""Evaluating a field, refusing what is no vector field, and moving scalars from the device to the host."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states

from odenet_lightning.solvers.problem import Problem, SolverError, VectorField

# what a bug in a field raises: exactly these, as their subclasses (out of memory, a failed inner solve) say more
SLIPS = (RuntimeError, TypeError, ValueError, AttributeError, NameError, IndexError, KeyError, AssertionError)


class FieldError(RuntimeError):
    """The given f(t, y) is not a vector field, or not one that this combination can solve or differentiate."""


def name_of(field: VectorField) -> str:
    """A field's class, or a function's name."""
    return getattr(field, "__qualname__", type(field).__name__)


def in_place_error(field: VectorField) -> FieldError:
    """The error for a field that changes the solver's state in place."""
    return FieldError(
        f"{name_of(field)} changes its input y in place, which is the solver's own state: use out-of-place operations "
        "(relu without inplace=True, y + 1 instead of y += 1)"
    )


def overwritten_error(field: VectorField) -> FieldError:
    """The error for a field whose later evaluations change the tensors that earlier ones returned."""
    return FieldError(
        f"{name_of(field)} changes in place what it has returned, which the step still needs: return a new tensor from "
        "each evaluation (no out=, no buffer that is filled again)"
    )


def evaluate(field: VectorField, t: float | Tensor, y: Tensor) -> Tensor:
    """f(t, y) in the state's own precision: under autocast a field answers in 16 bits, the state must not.

    Raises:
        FieldError: the field fails, changes y in place, or does not return real numbers in y's shape.
    """
    time = t if isinstance(t, Tensor) else torch.full((), t, dtype=y.dtype, device=y.device)
    version = y._version
    try:
        slope = field(time, y)
    except Exception as error:
        if "a leaf Variable that requires grad" in str(error):
            raise in_place_error(field) from error
        if type(error) not in SLIPS:
            raise
        raise FieldError(
            f"{name_of(field)} failed as f(t, y), with t a scalar and y of shape {list(y.shape)}, {y.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if y._version != version:
        raise in_place_error(field)
    return refuse_other_shapes(field, slope, y).to(y.dtype)


def refuse_other_shapes(field: VectorField, slope: Any, y: Tensor) -> Tensor:
    """What a field returned for y, where that can be dy/dt: a smaller shape would be broadcast silently.

    Raises:
        FieldError: it is no tensor of real numbers in y's shape.
    """
    if not isinstance(slope, Tensor):
        raise FieldError(f"{name_of(field)} returned {type(slope).__name__}, needs a tensor of shape {list(y.shape)}")
    if slope.shape != y.shape:
        raise FieldError(
            f"{name_of(field)} returned the shape {list(slope.shape)}, needs {list(y.shape)}, the shape of y "
            "(are its arguments t, y in this order?)"
        )
    if not slope.is_floating_point():
        raise FieldError(f"{name_of(field)} returned {slope.dtype}, needs {y.dtype}: f(t, y) must be real numbers")
    return slope


@contextmanager
def outside_inference_mode(problem: Problem) -> Iterator[Problem]:
    """Leave `torch.inference_mode` for no-grad mode, where that is on, with a problem that can be solved there."""
    if not torch.is_inference_mode_enabled():
        yield problem
        return
    with torch.inference_mode(False), torch.no_grad():
        yield replace(problem, y0=problem.y0.clone())


def random_states(device: torch.device) -> list[Tensor]:
    """The states of torch's random numbers that a field on this device may draw from."""
    of_device = [] if device.type == "cpu" else get_device_states(torch.empty(0, device=device))[1]
    return [torch.get_rng_state(), *of_device]


@contextmanager
def refusing_randomness(problem: Problem, what: str) -> Iterator[None]:
    """Refuse a field that draws random numbers, such as dropout in training.

    Noise that is drawn anew at each evaluation makes f no function of t and y: an error estimate then
    measures the noise, and a second solve meets another field.
    """
    before = random_states(problem.y0.device)
    failure = None
    try:
        yield
    except SolverError as error:  # as noise ends many a solve: its error does not shrink with the step
        failure = error
    if not all(map(torch.equal, before, random_states(problem.y0.device))):
        raise FieldError(
            f"the field {name_of(problem.field)} draws random numbers (dropout?), so it is no function of t and y, "
            f"which {what} needs: take fixed steps with Backprop or Checkpoint, or move the noise out of the field"
        ) from failure
    if failure is not None:
        raise failure


class _Together(torch.autograd.Function):
    """A scalar as it is; under vmap, the root mean square over the samples, as if they were solved together."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del inputs
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del info
        return (x if in_dims[0] is None else x.square().mean(in_dims[0]).sqrt()), None


def host_values(x: Tensor) -> Tensor:
    """The numbers in a tensor as float64 on the host, without axes of one: one device-to-host synchronisation.

    Raises:
        FieldError: they are hidden by a transform of `torch.func`.
    """
    try:
        return torch.tensor(x.detach().flatten().tolist(), dtype=torch.float64)
    except RuntimeError as error:
        if not re.search("vmap|have storage", str(error)):
            raise
        raise FieldError(
            "per_sample decides each image's steps by its numbers, which torch.func (vmap, grad) hides: leave one out"
        ) from error


def host_value(x: Tensor) -> float:
    """The number in a scalar tensor: one device-to-host synchronisation."""
    try:
        return float(x)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
    return host_value(_Together.apply(x))  # pyright: ignore[reportArgumentType] -- a tensor, untyped in torch
