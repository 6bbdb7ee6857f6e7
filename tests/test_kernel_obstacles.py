"""Where the compiled kernels do not apply, or something must be seen of the operators, PyTorch's run."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Backprop
from odenet_lightning.kernels.compiled import Library
from odenet_lightning.solvers import RK4, Dopri5, Midpoint, Problem, Solver
from odenet_lightning.solvers.runge_kutta import fused_step, plan_of
from tests.kernel_fields import ZERO, in_double, is_fused, made, needs_compiler, off_by


class Other(ConvField):
    """The post's field without its first norm."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.norm(self.conv(torch.relu(y)))


def hooked(field: ConvField, where: str) -> ConvField:
    field.get_submodule(where).register_forward_hook(lambda *_: None)
    return field


def with_batch_norm(field: ConvField) -> ConvField:
    field.norm = nn.BatchNorm2d(6)  # pyright: ignore[reportAttributeAccessIssue]
    return field


@needs_compiler
@pytest.mark.parametrize(
    ("field", "y"),
    [
        (made(6).double(), torch.randn(2, 6, 5, 5).double()),
        (made(6), torch.randn(2, 6, 5, 5).to(memory_format=torch.channels_last)),
        (made(25), torch.randn(2, 25, 5, 5)),
        (hooked(made(6), "norm"), torch.randn(2, 6, 5, 5)),
        (hooked(made(6), "conv"), torch.randn(2, 6, 5, 5)),
        (with_batch_norm(made(6)), torch.randn(2, 6, 5, 5)),
        (Other(6), torch.randn(2, 6, 5, 5)),
    ],
    ids=["float64", "channels-last", "many channels", "hook on norm", "hook on conv", "other norm", "subclass"],
)
def test_where_it_does_not_apply_operators_run(build: Library, field: ConvField, y: Tensor) -> None:
    y = y.requires_grad_()
    assert not is_fused(field(torch.zeros((), dtype=y.dtype), y))
    assert fused_step(field, plan_of(RK4(1).tableau, True), 0.1, y) is None


@needs_compiler
def test_a_single_value_per_channel_is_refused_as_by_the_operators(build: Library) -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        made(6)(ZERO, torch.randn(1, 6, 1, 1))
    assert is_fused(made(6)(ZERO, torch.randn(2, 6, 1, 1, requires_grad=True)))


@needs_compiler
def test_every_kind_of_hook_is_called(build: Library) -> None:
    y, called = torch.randn(1, 2, 5, 5, requires_grad=True), []
    for register in ("full_backward_hook", "full_backward_pre_hook", "forward_pre_hook", "forward_hook"):
        field = made(2)
        getattr(field.norm, f"register_{register}")(lambda *_, name=register: called.append(name))
        field(ZERO, y).sum().backward()
        assert called.count(register) == 2
    handle = register_module_forward_hook(lambda *_: called.append("global"))
    made(2)(ZERO, y)
    handle.remove()
    assert called.count("global") == 4  # the field, its norm twice, its convolution


@needs_compiler
def test_hook_on_the_field_sees_every_evaluation(build: Library) -> None:
    field, calls = made(2), []
    field.register_forward_hook(lambda *_: calls.append(1))
    Midpoint(3).solve(Problem(field, torch.randn(1, 2, 5, 5)))
    assert len(calls) == 6


@needs_compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, of jvp
def test_transforms_see_the_operators(build: Library) -> None:
    field, y = made(3), torch.randn(4, 3, 6, 6)
    truth = in_double(field)
    each = torch.func.vmap(lambda x: field(ZERO, x[None])[0])(y)
    assert off_by(each, truth(ZERO, y.double())) <= 2e-6
    along = torch.randn_like(y)
    slope = torch.func.jvp(lambda x: truth(ZERO, x), (y.double(),), (along.double(),))[1]
    assert off_by(torch.func.jvp(lambda x: field(ZERO, x), (y,), (along,))[1], slope) <= 4e-6
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(y, along)
        assert off_by(forward_ad.unpack_dual(field(ZERO, dual)).tangent, slope) <= 4e-6
    jacobian = torch.func.jacrev(lambda x: (field(ZERO, x) * along).sum())(y)
    assert off_by(jacobian, torch.func.jacrev(lambda x: (truth(ZERO, x) * along).sum())(y.double())) <= 4e-6
    with FlopCounterMode(display=False) as counted:
        field(ZERO, y)
    assert counted.get_total_flops() == 2 * 4 * 36 * 3 * 3 * 9
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fused(field(ZERO, y))


@needs_compiler
def test_transforms_of_other_tensors_see_the_operators(build: Library) -> None:
    """Where y itself is an ordinary tensor: its parameters are what is differentiated, or nothing of the field is."""
    field, y, along = made(3), *torch.randn(2, 4, 3, 6, 6)

    def loss(field: ConvField, params: dict[str, Tensor]) -> Tensor:
        f = torch.func.functional_call(field, params, (ZERO, y.to(field.conv.weight.dtype)))
        return (f * along).sum()

    found, truth = (
        torch.func.grad(lambda params, each=each: loss(each, params))(dict(each.named_parameters()))
        for each in (field, in_double(field))
    )
    for name in ("norm.weight", "norm.bias", "conv.weight"):
        assert off_by(found[name], truth[name]) <= 4e-6
    scaled = torch.func.vmap(lambda scale: scale * field(ZERO, y).sum())(torch.ones(3))
    assert off_by(scaled, in_double(field)(ZERO, y.double()).sum().expand(3)) <= 1e-4


@needs_compiler
def test_shapes_that_do_not_fit_are_pytorch_s_error(build: Library) -> None:
    """The kernel trusts its shapes: it would read beyond the parameters."""
    field = made(2)
    with pytest.raises(RuntimeError, match=r"Expected number of channels in input to be divisible|Expected weight"):
        field(ZERO, torch.randn(1, 6, 5, 5))
    fits, other = torch.randn(1, 2, 5, 5), torch.randn(1, 2, 4, 5)
    assert fused_step(field, plan_of(RK4(1).tableau, True), 0.1, fits, fits) is not None
    assert fused_step(field, plan_of(RK4(1).tableau, True), 0.1, fits, other) is None


@needs_compiler
@pytest.mark.parametrize("solver", [Midpoint(2), Dopri5(1e-2, 1e-2, 0.3)], ids=repr)
def test_gradient_penalty(build: Library, solver: Solver) -> None:
    """A gradient of a gradient, which the kernel leaves to PyTorch's operators."""

    def penalised(field: ConvField) -> list[Tensor | None]:
        y = torch.linspace(-2, 2, 3 * 3 * 6 * 6).view(3, 3, 6, 6).sin().to(field.conv.weight.dtype).requires_grad_()
        y1 = ODEBlock(field, solver, Backprop())(y)
        (slope,) = torch.autograd.grad(y1.square().sum(), y, create_graph=True)
        slope.square().sum().backward()
        return [y.grad, field.conv.weight.grad, field.norm.weight.grad, field.norm.bias.grad]

    field = made(3)
    truth = penalised(in_double(field))
    for own, right in zip(penalised(field), truth, strict=True):
        assert off_by(own, right) <= 2e-5


@needs_compiler
def test_frozen_parameters_and_what_changes_in_between(build: Library) -> None:
    field, y = made(2), torch.randn(2, 2, 5, 5, requires_grad=True)
    field.conv.weight.requires_grad_(False)
    field(ZERO, y).sum().backward()
    assert field.conv.weight.grad is None
    assert field.norm.weight.grad is not None
    f = field(ZERO, y)
    with torch.no_grad():
        field.norm.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        f.sum().backward()


@needs_compiler
@pytest.mark.parametrize("solver", [Midpoint(2), Dopri5(1e-2, 1e-2, 0.3)], ids=repr)
def test_a_later_layer_may_change_the_end_in_place(build: Library, solver: Solver) -> None:
    field, y0 = made(2), torch.randn(2, 2, 5, 5, requires_grad=True)
    y1 = ODEBlock(field, solver, Backprop())(y0)
    (expected,) = torch.autograd.grad((y1 * 2).sum(), y0, retain_graph=True)
    (found,) = torch.autograd.grad(y1.mul_(2).sum(), y0)
    assert torch.equal(found, expected)


@needs_compiler
def test_a_compiled_field_is_left_to_the_compiler(build: Library) -> None:
    field, y = made(2), torch.randn(1, 2, 5, 5)
    plan = plan_of(RK4(1).tableau, True)
    assert fused_step(field, plan, 0.1, y) is not None
    field.compile(backend="eager")
    assert fused_step(field, plan, 0.1, y) is None


class Watching(TorchDispatchMode):
    """Keeps the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@needs_compiler
def test_who_watches_operators_sees_them(build: Library) -> None:
    with Watching() as watching:
        made(2)(ZERO, torch.randn(1, 2, 5, 5))
    assert sum("convolution" in name for name in watching.names) == 1
