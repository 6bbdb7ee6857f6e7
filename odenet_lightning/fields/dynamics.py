"""Other dynamics, made from any field: of second order, with friction, and with weights that are functions of t."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from odenet_lightning.fields.base import Field
from odenet_lightning.fields.convolutions import ConvField
from odenet_lightning.gradients.recompute import tensors_of
from odenet_lightning.solvers.settings import check_whole


class SecondOrder(Field):
    """y'' = f(t, y), as a first-order system of position and velocity (Norcliffe et al. 2020, arXiv:2006.07220).

    The state is (y, v), the first and second half of its channels: dy/dt = v, dv/dt = f(t, y). So the field has half as
    many channels as the state, and an evaluation costs one evaluation of the field. Any solver keeps its order. In the
    paper, f may depend on v, too; here it does so only through the friction of `HeavyBall`.

    The initial velocity comes from the stem: `ODENet(channels=12)` learns all 12 channels, of which 6 are velocities;
    `ODENet(channels=6, augment_dim=6)` starts at rest.

    Do not use it with very few evaluations: from rest, the first Euler step changes the velocity alone. Without
    friction, the flow preserves volume: it contracts in some directions only as much as it expands in others.

    Args:
        field: f, on half of the channels; by default `ConvField` with 6.
    """

    def __init__(self, field: Field | None = None) -> None:
        super().__init__()
        self.field = field or ConvField()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, `[B, 2 C, ...]`."""
        if y.dim() < 2 or y.size(1) % 2:
            raise ValueError(
                f"{type(self).__name__} needs an even number of channels, positions and velocities, not those of "
                f"{list(y.shape)}: append channels of zeros, ODENet's augment_dim N, --model.net.augment_dim N"
            )
        position, velocity = y.chunk(2, 1)
        try:
            acceleration = self.acceleration(t, position.contiguous(), velocity)  # as kernels need it
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # out of memory, a failed solve within the field
                raise
            raise RuntimeError(
                f"{type(self).__name__}: its field {type(self.field).__name__} failed on {position.size(1)} of the "
                f"state's {y.size(1)} channels ({error}); the others are velocities. If it is made for all of them, "
                "append channels of zeros for the velocities: ODENet's augment_dim N, --model.net.augment_dim N"
            ) from error
        return torch.cat([velocity, acceleration], 1)

    def acceleration(self, t: Tensor, position: Tensor, velocity: Tensor) -> Tensor:
        """Return dv/dt, `[B, C, ...]`."""
        del velocity
        return self.field(t, position)


class HeavyBall(SecondOrder):
    """y'' = f(t, y) - gamma y', a ball with friction (HBNODE, Xia et al. 2021, arXiv:2110.04840).

    gamma = sigmoid(omega) is learned, a single number between 0 and 1; the state is that of `SecondOrder`. Whatever f
    is, volumes of the state space shrink by exp(-gamma C H W t), for positions `[B, C, H, W]`.

    It cannot have friction above 1, and does not suit where `SecondOrder` does not.

    Args:
        field: f, on half of the channels; by default `ConvField` with 6.
        damping: initial gamma; the authors start from sigmoid(-3), about 0.047.
    """

    def __init__(self, field: Field | None = None, damping: float = 0.05) -> None:
        super().__init__(field)
        if not 0 < damping < 1:
            raise ValueError(f"damping must be between 0 and 1, not {damping!r}")
        self.omega = nn.Parameter(torch.tensor(math.log(damping / (1 - damping))))

    def acceleration(self, t: Tensor, position: Tensor, velocity: Tensor) -> Tensor:
        """Return dv/dt, `[B, C, ...]`."""
        return self.field(t, position) - self.omega.sigmoid() * velocity


def fourier(t: Tensor, terms: int) -> list[Tensor]:
    """cos(j pi t): the cosine series, which does not force the weights at 0 and 1 to be equal."""
    return [torch.cos(math.pi * j * t) for j in range(terms)]


def polynomial(t: Tensor, terms: int) -> list[Tensor]:
    """Chebyshev's polynomials T_j(2 t - 1), within [-1, 1]."""
    x = 2 * t - 1
    values = [torch.ones_like(t), x]
    while len(values) < terms:
        values.append(2 * x * values[-1] - values[-2])
    return values[:terms]


def piecewise(t: Tensor, terms: int) -> list[Tensor]:
    """1 in the j-th of equal parts of [0, 1], else 0; a time that rounding puts just before a part counts as in it."""
    place = (t * terms + 1e-4).floor().clamp(0, terms - 1)
    return [(place == j).to(t.dtype) for j in range(terms)]


def combined(psi: list[Tensor], theta: list[Tensor]) -> Tensor:
    """The sum of psi_j theta_j."""
    total = psi[0] * theta[0]
    for value, coefficient in zip(psi[1:], theta[1:], strict=True):
        total = torch.addcmul(total, value, coefficient)
    return total


Basis = Literal["fourier", "polynomial", "piecewise"]
BASES: dict[Basis, Callable[[Tensor, int], list[Tensor]]] = {
    "fourier": fourier,
    "polynomial": polynomial,
    "piecewise": piecewise,
}


class Galerkin(Field):
    """A field whose parameters are functions of t: theta(t) = sum_j theta_j psi_j(t).

    The functions psi_j are a cosine series or polynomials (Massaroli et al. 2020, arXiv:2002.08071), or are 1 in one of
    equal parts of [0, 1] and 0 elsewhere: weights that are piecewise constant in t (Queiruga et al. 2020 and 2021,
    arXiv:2008.02389 and 2106.08018). The coefficients theta_j are the parameters of copies of the field, so that each
    has the name and shape of its parameter. Initially, the field is the given one at all times.

    Parameters: `terms` times the field's. Time: each evaluation computes the sums, and no kernel takes whole steps.
    Where each image has its own time (`per_sample`), each has its own weights, and the field runs under `torch.vmap`,
    which is slow.

    Use "piecewise" only if the steps end at the breaks j / terms: a step over a break has an error of order h, so every
    method is of first order, and an adaptive one takes many small steps there. `Euler` and `Midpoint` keep their order
    if `num_steps` is a multiple of `terms`. `Heun`, `RK4` and the rest do not, nor does the backward solve of
    `Adjoint`: they also evaluate f at the break that ends a step, where the next part's weights apply. With fewer steps
    than terms (`CoarseStart`), some weights are never used.

    Args:
        field: the field; by default `ConvField` with 6 channels.
        basis: which functions psi_j.
        terms: their number, at least 1; with one, the weights are the same at all times.
    """

    def __init__(self, field: Field | None = None, basis: Basis = "fourier", terms: int = 3) -> None:
        super().__init__()
        if basis not in BASES:
            raise ValueError(f"basis must be one of {', '.join(BASES)}, not {basis!r}")
        check_whole("terms", terms)
        self.basis: Basis = basis
        self.terms = terms
        first = field or ConvField()
        try:
            copies = [copy.deepcopy(first) for _ in range(terms - 1)]
        except RuntimeError as error:  # a tensor with a history in an attribute
            raise ValueError(
                f"{type(first).__name__} cannot be copied for each of the {terms} terms ({error}): in place of "
                "torch.nn.utils.weight_norm, use torch.nn.utils.parametrizations.weight_norm"
            ) from error
        self.coefficients = nn.ModuleList([first, *copies])
        if basis != "piecewise":  # the first function is 1
            for parameter in self.coefficients[1:].parameters():
                nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        """The parts that are no modules."""
        return f"basis={self.basis!r}"

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt, in the shape of `y`."""
        if t.dim():
            return torch.vmap(lambda t, y: self.at(t, y[None])[0])(t.flatten(), y)
        return self.at(t, y)

    def at(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dy/dt at a scalar time."""
        psi = BASES[self.basis](t, self.terms)
        each = [tensors_of(field) for field in self.coefficients]
        theta = {name: combined(psi, [field[name] for field in each]) for name in each[0]}
        return functional_call(self.coefficients[0], theta, (t, y), tie_weights=False)
