"""The field as the forward pass saw it, to be evaluated again in the backward pass.

`Checkpoint`, `Reversible` and `Adjoint` do so. All that the field depends on besides t, y and its parameters must then
be the same: the tensors that replaced its parameters, its buffers, random numbers and autocast. Tensors that are not
among its parameters cannot be found from the field, and are refused; so are those that it keeps from an evaluation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.checkpoint import get_device_states, set_device_states

from odenet_lightning.gradients.base import GradientError
from odenet_lightning.gradients.held import Held
from odenet_lightning.gradients.leaves import refuse_unknown_leaves
from odenet_lightning.kernels import FusedStep, Plan
from odenet_lightning.solvers import BackwardStats, FieldError, Problem, VectorField
from odenet_lightning.solvers.evaluation import evaluate, name_of
from odenet_lightning.solvers.runge_kutta import fused_step

ROUNDING = 4  # units in the last place by which the same evaluation may differ
SAMPLED = 64  # entries of a state that are kept, to detect one that differs when recomputed


def named(
    module: nn.Module, tensors: Callable[[nn.Module], Mapping[str, Tensor | None]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module and of the modules within it, with their names, each module once."""
    for path, part in module.named_modules():
        yield from ((f"{path}.{name}".strip("."), x) for name, x in tensors(part).items() if x is not None)


def tensors_of(field: VectorField) -> dict[str, Tensor]:
    """The field's parameters by name; a plain function has none.

    A parameter that several modules share has a name in each. A module that is used in several places has one name:
    given a second one, `torch.func.functional_call` would leave the replaced tensors in it.
    """
    return dict(named(field, lambda module: module._parameters)) if isinstance(field, nn.Module) else {}


def inputs_of(field: VectorField) -> tuple[Tensor, ...]:
    """The field's parameters without repetition, for `torch.autograd.Function.apply`."""
    return tuple(field.parameters()) if isinstance(field, nn.Module) else ()


def buffers_of(field: VectorField) -> dict[str, Tensor]:
    """Copies of the field's buffers: a norm's running statistics change in place, and autograd does not notice."""
    if not isinstance(field, nn.Module):
        return {}
    return {name: buffer.clone() for name, buffer in named(field, lambda module: module._buffers)}


def sample(y: Tensor) -> Tensor:
    """A few entries of a state, spread evenly."""
    flat = y.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)].clone()


def add(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may be missing."""
    if total is None or grad is None:
        return grad if total is None else total
    return total + grad


@dataclass(frozen=True)
class Surroundings:
    """The inputs of an evaluation besides t, y and the parameters: random numbers and buffers."""

    random: Tensor
    device_random: tuple[list[int], list[Tensor]]
    buffers: dict[str, Tensor]

    @staticmethod
    def of(field: VectorField, y: Tensor, before: "Surroundings | None" = None) -> "Surroundings":
        """Return those of now, or `before` itself if there are no buffers and no number was drawn since."""
        devices, states = ([], []) if y.device.type == "cpu" else get_device_states(y)
        now = Surroundings(torch.get_rng_state(), (list(devices), list(states)), buffers_of(field))
        return before if before is not None and not now.buffers and before.draws_alike(now) else now

    def draws_alike(self, other: "Surroundings") -> bool:
        """Whether random numbers continue from the same place. The states are on the host: it waits for no device."""
        here, there = ([each.random, *each.device_random[1]] for each in (self, other))
        return all(map(torch.equal, here, there))

    def set_random(self) -> None:
        """Have random numbers continue from here."""
        torch.set_rng_state(self.random)
        if self.device_random[0]:
            set_device_states(*self.device_random)


class Recomputation:
    """A field for the backward pass: the forward pass's tensors in it, its buffers left alone, its calls counted."""

    def __init__(self, field: VectorField, y0: Tensor) -> None:
        self.field, self.stats, self.size = field, BackwardStats(), y0.numel()
        self.__qualname__ = name_of(field)  # what errors call it
        inputs = inputs_of(field)
        self.places = {name: next(i for i, q in enumerate(inputs) if p is q) for name, p in tensors_of(field).items()}
        self.device_type = y0.device.type
        self.autocast = torch.is_autocast_enabled(self.device_type)
        self.autocast_dtype = torch.get_autocast_dtype(self.device_type)
        self.substitutes: dict[str, Tensor] = {}
        modules = tuple(field.modules()) if isinstance(field, nn.Module) else ()
        self.modes = [(module, module.training) for module in modules]
        self.before, self.buffers = Held(field), buffers_of(field)
        self.keeps, self.times = False, (0.0, 0.5)
        if parametrize._cache_enabled and any(parametrize.is_parametrized(module) for module in modules):
            raise GradientError(
                f"{name_of(field)} has parametrizations, whose values parametrize.cached() keeps from a forward pass "
                "without gradients: leave cached() out, or use Backprop"
            )

    def solved(self, problem: Problem) -> None:
        """Note whether the forward pass has left tensors in the field's attributes, and refuse unknown inputs."""
        self.times = problem.t0, (problem.t0 + problem.t1) / 2
        self.keeps = any(True for _ in self.before.new())
        if not any(x.requires_grad for x in (problem.y0, *inputs_of(self.field))):
            with torch.enable_grad():  # no backward pass would run, so nothing else would notice
                output = evaluate(self.field, problem.t0, problem.y0.detach())
            refuse_unknown_leaves(self.field, output, ())

    @torch.no_grad()
    def refuse_changed_values(self, problem: Problem) -> None:
        """After a solve under error control, refuse a field whose values depend on buffers that evaluations change.

        A step is accepted or rejected only after its evaluations, which may have changed the buffers. Spectral norm
        makes the values agree far better than the gradients, so they must agree to rounding.

        Raises:
            FieldError: its values with the buffers before the solve differ from those with the buffers after it.
        """
        field, now = self.field, buffers_of(self.field)
        if not isinstance(field, nn.Module) or all(torch.equal(self.buffers[name], now[name]) for name in now):
            return

        def value(buffers: dict[str, Tensor]) -> Tensor:
            given = {name: buffer.clone() for name, buffer in buffers.items()}  # as the evaluation changes them
            return evaluate(
                lambda t, y: functional_call(field, given, (t, y), tie_weights=False), problem.t0, problem.y0
            )

        first, last = value(self.buffers), value(now)
        eps = torch.finfo(first.dtype).eps
        if float((last - first).abs().max()) > ROUNDING * eps * float(first.abs().max()):
            raise FieldError(
                f"{self.__qualname__} gave other values with the buffers that the solve left than with those before "
                "it, as under spectral norm in training, so steps under error control cannot be computed again: use "
                "Backprop, or take fixed steps"
            )

    def tensors(self, saved: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors to differentiate by, given the saved parameters; where these differ, they replace the module's.

        They differ under `torch.func.functional_call` and if hooks for saved tensors have moved them. Those with hooks
        of their own are replaced, too: a hook is called once, with the whole gradient, not with each evaluation's part.

        Raises:
            GradientError: the field was switched between training and evaluation since the forward pass.
        """
        if any(module.training != mode for module, mode in self.modes):
            raise GradientError(
                f"{self.__qualname__} was switched between train() and eval() after the forward pass, so it cannot be "
                "evaluated again as it was: switch after backward(), or use Backprop"
            )
        now = tensors_of(self.field)
        has_hooks = any(p._backward_hooks for p in saved)
        if not has_hooks and all(now[name] is saved[place] for name, place in self.places.items()):
            return saved
        given = [p.detach().requires_grad_(p.requires_grad) for p in saved]
        self.substitutes = {name: given[place] for name, place in self.places.items()}
        return given

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """Return f(t, y) and count the evaluation; for a part of the batch, count that part of one."""
        self.stats.evaluations += self.share(y)
        if self.substitutes and isinstance(self.field, nn.Module):
            return functional_call(self.field, self.substitutes, (t, y), tie_weights=False)
        return self.field(t, y)

    def runge_kutta_step(
        self, plan: Plan, h: float | Tensor, y: Tensor, k_first: Tensor | None, tolerance: tuple[float, float]
    ) -> FusedStep | None:
        """See `solvers.runge_kutta.fused_step`; its evaluations are counted, too."""
        taken = None if self.substitutes else fused_step(self.field, plan, h, y, k_first, tolerance)
        if taken is not None:
            self.stats.evaluations += plan.evaluations(k_first is not None) * self.share(y)
        return taken

    def share(self, y: Tensor) -> float:
        """The share of the batch's images that a state has."""
        return 1 if y.numel() == self.size else y.numel() / self.size

    @contextmanager
    def as_in_forward(self, buffers: dict[str, Tensor]) -> Iterator[None]:
        """Evaluate under the forward pass's autocast, with gradients, on copies of its buffers.

        Autocast's cache of cast weights is off, since it would outlive its graph.
        """
        if buffers:
            self.substitutes = {**self.substitutes, **{name: buffer.clone() for name, buffer in buffers.items()}}
        if not self.autocast and not torch.is_autocast_enabled(self.device_type):
            with torch.enable_grad():
                yield
            return
        with (
            torch.enable_grad(),
            torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast, cache_enabled=False),
        ):
            yield

    @contextmanager
    def as_at(self, then: Surroundings) -> Iterator[None]:
        """`as_in_forward`, with the random numbers that a step drew."""
        then.set_random()
        with self.as_in_forward(then.buffers):
            yield

    def check_leaves(self, output: Tensor, known: Sequence[Tensor]) -> None:
        """Refuse a result that depends on tensors with gradients that are not among the known ones, or has lost some.

        Raises:
            FieldError: it gives the shape of an unknown one, or the name of one that the field has kept from the
                forward pass, where it was computed without gradients.
        """
        refuse_unknown_leaves(self.field, output, known)
        if not self.keeps or all(x.requires_grad for _, x in self.before.new()):
            return
        self.keeps = False  # once for each solve
        name = self.before.lost(self.times, known[0])
        if name is not None:
            raise FieldError(
                f"{self.__qualname__} keeps {name} from one evaluation for the next ones, so no gradient passes "
                "through it when a step is recomputed: compute it in each evaluation, or use Backprop"
            )
