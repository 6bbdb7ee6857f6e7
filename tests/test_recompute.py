"""All that a field depends on beside t, y and its parameters is the same in the backward pass, or it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrize

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient, GradientError, UnknownTensorError
from odenet_lightning.gradients import Reversible as ReversibleGradient
from odenet_lightning.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    FieldError,
    Midpoint,
    Problem,
    Reversible,
    RungeKutta,
    Solver,
    TorchDiffEq,
)
from tests.gradient_problems import (
    SHAPE,
    Generated,
    Hidden,
    Late,
    Noisy,
    Normed,
    Parametrized,
    Rectified,
    SpectrallyNormed,
    grads_of,
    made,
    start,
)

GRADIENTS: list[Gradient] = [Backprop(), Checkpoint(), Checkpoint(slots=2), Adjoint()]
REDOING: list[Gradient] = [Checkpoint(), Checkpoint(slots=2), Adjoint()]
each_gradient = pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
each_that_redoes = pytest.mark.parametrize("gradient", REDOING, ids=repr)


# --- random numbers


def test_checkpoint_draws_the_forward_pass_s_noise_again() -> None:
    results: list[list[Any]] = []
    for gradient in (Backprop(), Checkpoint()):
        block = made(Noisy, Midpoint(num_steps=2), gradient)
        results.append(grads_of(block, start()))
        after = torch.rand(3)
        results[-1].append(after)  # and the numbers drawn after it are not touched by the backward pass
    (start_grad, *plain), (replayed_grad, *replayed) = results
    assert torch.equal(start_grad, replayed_grad), "bit for bit"
    assert torch.equal(plain.pop(), replayed.pop())
    for one, other in zip(plain, replayed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # summed over the steps in another order


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        (Midpoint(num_steps=2), Adjoint()),
        (Dopri5(0.1, 0.1), Backprop()),
        (Bosh3(0.1, 0.1, first_step=0.5), Checkpoint()),
        (TorchDiffEq("dopri5", 0.1, 0.1), Backprop()),
    ],
    ids=repr,
)
def test_noise_that_no_ode_could_have_is_refused(solver: Solver, gradient: Gradient) -> None:
    block = made(Noisy, solver, gradient)
    with pytest.raises(FieldError, match=r"Noisy draws random numbers \(dropout\?\).*Backprop or Checkpoint"):
        block(start())
    block.eval()(start())  # without noise it is one


def test_a_generator_of_the_field_s_own_is_noticed() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return y * torch.rand(y.shape, generator=self.generator)

    y1 = made(Own, Midpoint(num_steps=2), Checkpoint())(start())
    with pytest.raises(FieldError, match="Own gave other values when Checkpoint evaluated it again"):
        y1.sum().backward()


@pytest.mark.parametrize("wants_start", [True, False])
@each_that_redoes
def test_a_tensor_without_a_gradient_is_named(gradient: Gradient, wants_start: bool) -> None:
    block = made(Hidden, Midpoint(num_steps=2), gradient)
    with pytest.raises(
        UnknownTensorError, match=r"Hidden uses a tensor \(shape \[6.*nn\.ModuleList.*Backprop"
    ) as error:
        block(start().requires_grad_(wants_start)).sum().backward()
    assert any(error.value.tensor is p for p in block.field.layers[0].parameters())  # pyright: ignore


def test_backprop_differentiates_by_it_all_the_same() -> None:
    block = made(Hidden, Midpoint(num_steps=2), Backprop())
    block(start()).sum().backward()
    assert block.field.layers[0].weight.grad.abs().max() > 0  # pyright: ignore


@each_that_redoes
def test_a_state_of_another_layer_is_named_by_that_layer(gradient: Gradient) -> None:
    """A field that closes over what an encoder made: its graph ends at the encoder's weight."""
    encoder = nn.Linear(3, 1, bias=False)
    context = encoder(torch.ones(3))
    with pytest.raises(UnknownTensorError, match=r"shape \[1, 3\]"):
        gradient.solve(Midpoint(num_steps=1), Problem(lambda t, y: y * context, start())).y.sum().backward()


class Keeping(nn.Module):
    """Makes its weight once a solve, and a grid of places once and for all."""

    def __init__(self, once: bool = True) -> None:
        super().__init__()
        self.conv, self.once, self.weight, self.grid = nn.Conv2d(6, 6, 3, padding=1), once, None, None

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.linspace(-1.0, 1.0, y.shape[-1])
        if self.weight is None or not self.once or float(t) == 0.0:
            self.weight = self.conv.weight * 2
        return torch.tanh(F.conv2d(y, self.weight, self.conv.bias, padding=1)) * self.grid


@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), Dopri5()], ids=repr)
@each_that_redoes
def test_a_tensor_that_a_field_keeps_is_refused_where_its_gradient_would_be_lost(
    gradient: Gradient, solver: Solver
) -> None:
    with pytest.raises(FieldError, match="Keeping keeps weight from one evaluation for the next"):
        grads_of(made(Keeping, solver, gradient), start())
    truth, found = (grads_of(made(lambda: Keeping(once=False), solver, g), start()) for g in (Backprop(), gradient))
    for one, other in zip(truth, found, strict=True):
        tolerance = 0.1 if isinstance(gradient, Adjoint) else 1e-5
        assert (other - one).norm() < tolerance * one.norm()  # pyright: ignore


@each_gradient
def test_functional_call_differentiates_by_the_given_parameters(gradient: Gradient) -> None:
    def gradients(params: dict[str, Tensor], block: ODEBlock) -> tuple[Tensor, ...]:
        loss = functional_call(block, params, (start(),)).square().mean()
        return torch.autograd.grad(loss, tuple(params.values()))

    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    torch.manual_seed(5)
    given = {name: torch.randn_like(p).requires_grad_() for name, p in block.named_parameters()}
    other = ODEBlock(ConvField(6), Midpoint(num_steps=2), gradient)
    other.load_state_dict(given)
    other(start()).square().mean().backward()
    for grad_given, p in zip(gradients(given, block), other.parameters(), strict=True):
        torch.testing.assert_close(grad_given, p.grad, rtol=1e-6, atol=1e-8)
    made_from = {name: p * 1.0 for name, p in given.items()}  # no leaves, as of a network that makes weights
    for grad_made, p in zip(gradients(made_from, block), other.parameters(), strict=True):
        torch.testing.assert_close(grad_made, p.grad, rtol=1e-6, atol=1e-8)
    assert all(p.grad is None for p in block.parameters())


@each_that_redoes
def test_saved_tensors_may_be_moved(gradient: Gradient) -> None:
    """Hooks give back other tensors than the module's own."""
    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    truth = grads_of(block, start())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x):
        moved = grads_of(block, start())
    for one, other in zip(truth, moved, strict=True):
        torch.testing.assert_close(one, other)


@each_that_redoes
def test_a_hook_of_a_parameter_gets_the_whole_gradient_once(gradient: Gradient) -> None:
    """Not the part of each step, and then their sum again: it may clip."""
    hooked: list[Tensor] = []
    for method in (Backprop(), gradient):
        block = made(lambda: ConvField(6), Dopri5(1e-3, 1e-3), method)
        weight, calls = block.field.conv.weight, []  # pyright: ignore
        weight.register_hook(lambda grad, calls=calls: calls.append(1) or grad * 2)  # pyright: ignore
        grads_of(block, start())
        assert len(calls) == 1
        hooked.append(weight.grad)  # pyright: ignore
    off = (hooked[1] - hooked[0]).norm() / hooked[0].norm()
    assert off < (0.1 if isinstance(gradient, Adjoint) else 1e-5)


@each_that_redoes
def test_a_field_that_was_switched_to_evaluation_before_the_backward_pass_is_refused(gradient: Gradient) -> None:
    block = made(Normed, Midpoint(num_steps=2), gradient)
    loss = block(start()).square().mean()
    block.eval()
    with pytest.raises(GradientError, match=r"Normed was switched between train\(\) and eval\(\)"):
        loss.backward()


@each_gradient
def test_running_statistics_are_updated_once_per_evaluation_of_the_forward_pass(gradient: Gradient) -> None:
    truth = made(Normed, Midpoint(num_steps=2), Backprop())
    expected = grads_of(truth, start())
    block = made(Normed, Midpoint(num_steps=2), gradient)
    found = grads_of(block, start())
    assert int(block.field.norm.num_batches_tracked) == 4  # pyright: ignore
    for name, buffer in truth.named_buffers():
        assert torch.equal(buffer, dict(block.named_buffers())[name]), name
    if not isinstance(gradient, Adjoint):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other)


def test_a_buffer_that_the_field_reads_and_writes_is_as_it_was_at_each_step() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1  # pyright: ignore
            return self.weight * y / self.calls.item()  # pyright: ignore

    plain, replayed = (grads_of(made(Counting, Midpoint(num_steps=3), g), start()) for g in (Backprop(), Checkpoint()))
    for one, other in zip(plain, replayed, strict=True):
        torch.testing.assert_close(one, other)


class Twice(nn.Module):
    """Two layers, each used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.same_conv, self.same_norm = self.conv, self.norm

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.same_norm(self.same_conv(self.norm(self.conv(y)))))


@each_that_redoes
def test_a_layer_under_two_names_keeps_its_tensors(gradient: Gradient) -> None:
    """`torch.func.functional_call` leaves it with the replaced ones if it is given them under both."""
    block = made(Twice, Midpoint(num_steps=2), gradient)
    tensors = [*block.parameters(), *block.buffers()]
    tensors[0].register_hook(lambda grad: grad)  # has parameters replaced, too
    truth = made(Twice, Midpoint(num_steps=2), Backprop())
    found, expected = grads_of(block, start()), grads_of(truth, start())
    assert all(one is other for one, other in zip(tensors, (*block.parameters(), *block.buffers()), strict=True))
    for one, other in zip(truth.buffers(), block.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    if isinstance(gradient, Checkpoint):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("gradient", "coupled"), [(Checkpoint(), False), (Checkpoint(slots=1), False), (ReversibleGradient(), True)]
)
def test_a_buffer_that_changes_within_a_step_under_error_control_is_refused(gradient: Gradient, coupled: bool) -> None:
    """Its gradient was off by half a per cent or more; with fixed steps it is right, as it is in evaluation."""

    def block(method: RungeKutta, gradient: Gradient) -> ODEBlock:
        return made(SpectrallyNormed, Reversible(method) if coupled else method, gradient)

    for tolerance in (0.1, 1e-5):  # at which a recomputed step's end is off by 3e-5 and by 4e-6
        with pytest.raises(FieldError, match=r"SpectrallyNormed gave other values .*spectral norm"):
            block(Dopri5(tolerance, tolerance), gradient)(start())
    for method, is_training in ((Midpoint(num_steps=2), True), (Dopri5(), False)):
        blocks = [block(method, each).train(is_training) for each in (Backprop(), gradient)]
        for one, other in zip(*(grads_of(block, start()) for block in blocks), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gradient", "coupled"), [(Checkpoint(), False), (ReversibleGradient(), True)])
def test_running_statistics_that_no_value_depends_on_are_not_refused(gradient: Gradient, coupled: bool) -> None:
    method = Dopri5(1e-2, 1e-2)
    blocks = [made(Normed, Reversible(method) if coupled else method, each) for each in (Backprop(), gradient)]
    for one, other in zip(*(grads_of(block, start()) for block in blocks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(*(block.buffers() for block in blocks), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", ["train", "no_grad", "inference"])
@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), Dopri5(0.1, 0.1), TorchDiffEq("dopri5", 0.1, 0.1)], ids=repr)
@each_gradient
def test_a_field_that_works_in_place_is_named(gradient: Gradient, solver: Solver, leaf: bool, mode: str) -> None:
    block = made(Rectified, solver, gradient)
    y0 = start() if leaf else start() * 1.0
    modes = {"train": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    with pytest.raises(FieldError, match="Rectified changes its input y in place"), modes[mode]():
        block(y0)


class Refilling(nn.Module):
    """Without gradients, fills one buffer again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.filled = nn.Conv2d(6, 6, 3, padding=1), torch.zeros(SHAPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        f = torch.tanh(self.conv(y))
        return f if torch.is_grad_enabled() else self.filled.copy_(f)


@pytest.mark.parametrize("mode", ["no_grad", "inference"])
@pytest.mark.parametrize(
    "solver", [RK4(num_steps=2), Dopri5(0.1, 0.1), TorchDiffEq("rk4", options={"step_size": 0.5})], ids=repr
)
def test_a_field_that_changes_what_it_has_returned_is_refused(solver: Solver, mode: str) -> None:
    block = made(Refilling, solver, Backprop())
    modes = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
    with pytest.raises(FieldError, match="Refilling changes in place what it has returned"), modes[mode]():
        block(start())


@each_gradient
def test_a_later_layer_may_work_in_place(gradient: Gradient) -> None:
    truth = grads_of(made(lambda: ConvField(6), Midpoint(num_steps=2), gradient), y0 := start())
    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    net = nn.Sequential(block, nn.ReLU(inplace=True))
    y0.grad = None
    net(y0).square().mean().backward()
    expected = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    z0 = start()
    expected(z0).relu().square().mean().backward()
    torch.testing.assert_close(y0.grad, z0.grad)
    assert truth[0] is not None
    for one, other in zip(block.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# --- wrong answers of a field


@pytest.mark.parametrize(
    ("field", "what"),
    [
        (lambda t, y: y[:, :1], r"the shape \[4, 1, 8, 8\], needs \[4, 6, 8, 8\]"),
        (lambda y, t: t * 2.0 if t.dim() == 0 else y * 2.0, r"the shape \[\].*in this order"),
        (lambda t, y: None, r"returned NoneType, needs a tensor of shape \[4, 6, 8, 8\]"),
        (lambda t, y: torch.complex(y, y), "returned torch.complex64, needs torch.float32"),
        (lambda t, y: (y > 0).long(), "returned torch.int64, needs torch.float32"),
        (
            lambda t, y: y @ y.new_zeros(3, 3),
            r"<lambda> failed as f\(t, y\), with .* of shape \[4, 6, 8, 8\].*RuntimeEr",
        ),
        (lambda y: y, r"<lambda> failed as f\(t, y\), .*TypeError: .* takes 1 positional argument but 2 were given"),
    ],
    ids=["broadcasts", "order", "None", "complex", "integers", "fails", "one argument"],
)
@each_gradient
def test_what_is_no_vector_field_is_refused(gradient: Gradient, field: Any, what: str) -> None:
    with pytest.raises(FieldError, match=what):
        gradient.solve(Midpoint(num_steps=2), Problem(field, start()))


@each_gradient
def test_a_complex_state_is_refused(gradient: Gradient) -> None:
    block = ODEBlock(nn.Identity(), Midpoint(num_steps=1), gradient)
    with pytest.raises(ValueError, match=r"not torch\.complex64: solve torch\.view_as_real"):
        block(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    "solver", [Midpoint(num_steps=2), Dopri5(), Bosh3(first_step=0.5), TorchDiffEq("dopri5")], ids=repr
)
@each_gradient
def test_empty_interval_and_empty_state_cost_nothing(gradient: Gradient, solver: Solver) -> None:
    def never(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    with torch.no_grad():
        for y0, t1 in ((start(), 0.0), (torch.zeros(0, 6, 8, 8), 1.0)):
            solution = gradient.solve(solver, Problem(never, y0, 0.0, t1))
            assert torch.equal(solution.y, y0)
            assert (solution.stats.evaluations, solution.stats.accepted) == (0, 0)
    block = ODEBlock(ConvField(6), solver, gradient)
    y0 = torch.zeros(0, 6, 8, 8, requires_grad=True)
    block(y0 * 1.0).relu_().sum().backward()
    assert y0.grad is not None


# --- fields that compute gradients


class Downhill(nn.Module):
    """f = -grad E(y) of an energy E."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            z = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.conv(z).square().sum() / 2, z, create_graph=torch.is_grad_enabled())
        return -slope


@pytest.mark.parametrize("solver", [Midpoint(num_steps=2), Dopri5(1e-3, 1e-3), TorchDiffEq("dopri5")], ids=repr)
@each_gradient
def test_a_gradient_field_is_solved_in_inference_mode(gradient: Gradient, solver: Solver) -> None:
    block = made(Downhill, solver, gradient).eval()
    truth = block(start()).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(start()), truth)
    with torch.inference_mode():
        torch.testing.assert_close(block(start()), truth)
        assert block.trajectory(start()).isfinite().all()


# --- transforms


# torch's own forward mode scripts its decompositions
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_backprop_works_under_vmap_jvp_and_per_sample_gradients() -> None:
    for solver in (Midpoint(num_steps=2), RK4(num_steps=2), Dopri5(1e-5, 1e-5), Bosh3(0.1, 0.1, first_step=0.4)):
        block = made(lambda: ConvField(6), solver, Backprop()).double()
        y0 = start().detach().double()
        params: dict[str, Tensor] = dict(block.named_parameters())
        direction = torch.randn_like(y0)

        def loss(params: dict[str, Tensor], y: Tensor, block: ODEBlock = block) -> Tensor:
            return functional_call(block, params, (y[None],)).square().sum()

        together = vmap(lambda y, block=block: block(y[None])[0])(y0)
        # one step size for all, as in a batch; the guess at the first step averages otherwise
        slack = 10 * getattr(solver, "rtol", 1e-8)
        torch.testing.assert_close(together, block(y0), rtol=slack, atol=slack)
        per_sample = vmap(grad(loss), in_dims=(None, 0))(params, y0)
        block.zero_grad()
        block(y0).square().sum().backward()
        for name, p in block.named_parameters():
            torch.testing.assert_close(per_sample[name].sum(0), p.grad, rtol=1e3 * slack, atol=1e3 * slack)
        tangent = jvp(lambda y, block=block: block(y), (y0,), (direction,))[1]
        z0, weights = y0.clone().requires_grad_(), torch.randn_like(y0)
        block(z0).backward(weights)
        assert z0.grad is not None
        # forward and reverse mode differentiate the same steps: <w, J v> = <w J, v>
        torch.testing.assert_close((weights * tangent).sum(), (z0.grad * direction).sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@each_that_redoes
def test_others_refuse_transforms(gradient: Gradient) -> None:
    block = made(lambda: ConvField(6), Midpoint(num_steps=2), gradient)
    y0 = start().detach()
    attempts: list[Callable[[], Any]] = [
        lambda: jacrev(lambda y: block(y).sum())(y0),
        lambda: vmap(lambda y: block(y[None]))(y0),
        lambda: jvp(block, (y0,), (y0,)),
    ]
    for attempt in attempts:
        with pytest.raises(GradientError, match=f"{type(gradient).__name__} .* use Backprop"):
            attempt()
    with forward_ad.dual_level(), pytest.raises(GradientError, match="use Backprop"):
        block(forward_ad.make_dual(y0, y0))


# --- the adjoint's unit


@pytest.mark.parametrize("solver", [Dopri5(0.1, 0.1), Dopri5(1e-3, 1e-3), Midpoint(num_steps=3)], ids=repr)
def test_adjoint_does_not_depend_on_the_loss_s_unit(solver: Solver) -> None:
    results = []
    for scale in (1.0, 1e-6, 1000.0, 65536.0):
        block = made(lambda: ConvField(6), solver, Adjoint()).double()
        y0 = start().double().detach().requires_grad_()
        solution = block.gradient.solve(solver, Problem(block.field, y0))
        (scale * solution.y.square().mean()).backward()
        assert solution.stats.backward is not None
        grads = [y0.grad, *(p.grad for p in block.parameters())]
        results.append((solution.stats.backward.evaluations, [g / scale for g in grads if g is not None]))
    for evaluations, grads in results[1:]:
        assert evaluations == results[0][0]
        for grad_scaled, truth in zip(grads, results[0][1], strict=True):
            torch.testing.assert_close(grad_scaled, truth, rtol=1e-9, atol=1e-12)


def test_torchdiffeq_s_adjoint_does() -> None:
    counts = []
    for scale in (1.0, 1000.0):
        block = made(lambda: ConvField(6), Dopri5(1e-3, 1e-3), Adjoint(normalise=False))
        solution = block.gradient.solve(block.solver, Problem(block.field, start()))
        (scale * solution.y.square().mean()).backward()
        assert solution.stats.backward is not None
        counts.append(solution.stats.backward.evaluations)
    assert counts[1] > counts[0]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_adjoint_hands_on_a_cotangent_without_a_size(value: float) -> None:
    """A loss scale that overflows is for the scaler to find, and a loss without a gradient for nobody."""
    y0 = start()
    made(lambda: ConvField(6), Dopri5(1e-3, 1e-3), Adjoint())(y0).backward(torch.full(SHAPE, value))
    assert y0.grad is not None
    assert bool((y0.grad == 0).all()) if value == 0.0 else bool(y0.grad.isnan().all())


# --- other images of the batch


@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [
        (Midpoint(num_steps=3), 0.0, 1e-4),
        (Dopri5(0.1, 0.1, first_step=0.5), 0.0, 1e-4),
        (Bosh3(0.1, 0.1), 1e-3, 1.0),
        (Dopri5(1e-3, 1e-3), 1e-5, 1e-1),
        (Dopri5(1e-5, 1e-5), 0.0, 1e-2),
    ],
    ids=repr,
)
def test_how_far_an_answer_depends_on_the_batch(solver: Solver, least: float, most: float) -> None:
    """One step size for a batch: an image's answer is right to the tolerance, and varies with the other images."""
    block = made(lambda: ConvField(6), solver, Backprop())
    scales = torch.logspace(-1, 1, 8)[:, None, None, None]
    y0 = scales * torch.randn(8, *SHAPE[1:], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together, alone = block(y0), torch.cat([block(image[None]) for image in y0])
    apart = float((together - alone).abs().max())
    assert least <= apart <= most


# --- blocks within fields


@each_gradient
def test_a_block_within_a_field_keeps_no_step(gradient: Gradient) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ODEBlock(ConvField(6), Dopri5(1e-3, 1e-3, first_step="warm"), gradient)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.inner(y) - y

    def block(outer: Gradient) -> ODEBlock:
        return made(Outer, Midpoint(num_steps=2), outer).double()

    y0 = start().double().detach().requires_grad_()
    truth, found = grads_of(block(Backprop()), y0), grads_of(nested := block(Checkpoint()), y0)
    assert nested.field.inner.warm_step is None  # pyright: ignore
    for one, other in zip(truth, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@each_that_redoes
def test_parametrizations_kept_from_a_pass_without_gradients_are_refused(gradient: Gradient) -> None:
    block = made(Parametrized, Midpoint(num_steps=2), gradient)
    assert all(grad is not None for grad in grads_of(block, start()))
    with parametrize.cached(), pytest.raises(GradientError, match=r"leave cached\(\) out"):
        block(start())


@each_that_redoes
def test_a_tensor_without_a_gradient_is_found_at_any_time(gradient: Gradient) -> None:
    with pytest.raises(UnknownTensorError, match="no parameter of it"):
        grads_of(made(Late, Midpoint(num_steps=4), gradient), start())


@each_that_redoes
def test_a_weight_computed_before_the_solve_is_refused(gradient: Gradient) -> None:
    block = made(Generated, Midpoint(num_steps=2), gradient)
    block.field.generate()  # pyright: ignore[reportCallIssue]
    with pytest.raises(GradientError, match="compute it within the field, or use Backprop"):
        grads_of(block, start())


@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint()], ids=repr)
def test_a_block_within_torch_s_own_checkpoint(gradient: Gradient) -> None:
    block, y0 = made(Noisy, Midpoint(num_steps=2), gradient).eval(), start()
    expected = grads_of(block, y0)
    y0.grad = None
    block.zero_grad()
    torch.utils.checkpoint.checkpoint(block, y0, use_reentrant=False).square().mean().backward()
    for found, truth in zip([y0.grad, *(p.grad for p in block.parameters())], expected, strict=True):
        assert found is not None
        assert truth is not None
        assert torch.equal(found, truth)


@pytest.mark.parametrize(
    "solver", [Midpoint(num_steps=2), Dopri5(num_steps=2), TorchDiffEq("rk4", options={"step_size": 0.5})]
)
def test_tolerances_of_the_adjoint_need_error_control(solver: Solver) -> None:
    with pytest.raises(ValueError, match="takes fixed steps, for which rtol and atol mean nothing"):
        made(Noisy, solver, Adjoint(rtol=1e-8)).eval()(start())
