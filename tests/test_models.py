"""The post's networks: shapes, sizes, names of their weights, and the post's formulas written down once more."""

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import ConvField, Field
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.models import (
    Classifier,
    Head,
    ODENet,
    ResNet,
    Stem,
)
from odenet_lightning.solvers import RK4, Dopri5, Solver, SolverError, TorchDiffEq
from tests.networks import make
from tests.problems import relative_error

STEM_KEYS = ["stem.conv.weight", "stem.conv.bias", "stem.norm.weight", "stem.norm.bias"]
FIELD_KEYS = ["norm.weight", "norm.bias", "conv.weight", "conv.bias"]
HEAD_KEYS = ["head.fc.weight", "head.fc.bias"]


def images(batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 1, 28, 28) * 2 - 1


def num_params(channels: int, fields: int) -> int:
    """Trainable parameters by the book: stem, trunk, head."""
    norm = 2 * channels
    stem = 9 * channels + channels + norm
    field = 9 * channels**2 + channels + norm
    head = 10 * channels * 13**2 + 10
    return stem + fields * field + head


def test_ode_net_is_the_post_s_by_default() -> None:
    net = ODENet()
    assert list(net.state_dict()) == [*STEM_KEYS, *(f"block.field.{key}" for key in FIELD_KEYS), *HEAD_KEYS]
    assert net.num_params == 10_564
    assert isinstance(net.block.field, ConvField)
    assert isinstance(net.block.gradient, Backprop)
    solver = net.block.solver
    assert isinstance(solver, Dopri5)
    assert (solver.rtol, solver.atol, solver.first_step) == (0.1, 0.1, "warm")


@pytest.mark.parametrize("channels", [1, 2, 6, 16, 33, 40])
def test_ode_net_of_any_width(channels: int) -> None:
    net = ODENet(channels=channels)
    assert net.num_params == num_params(channels, fields=1)
    assert net.stem(images()).shape == (3, channels, 26, 26)
    assert net(images()).shape == (3, 10)


@pytest.mark.parametrize("channels", [1, 6, 8])
@pytest.mark.parametrize("blocks", [0, 1, 6])
def test_res_net_of_any_width_and_depth(channels: int, blocks: int) -> None:
    net = ResNet(channels, blocks)
    assert net.num_params == num_params(channels, fields=blocks)
    assert net(images()).shape == (3, 10)
    middle = [f"blocks.{i}.field.{key}" for i in range(blocks) for key in FIELD_KEYS]
    assert list(net.state_dict()) == [*STEM_KEYS, *middle, *HEAD_KEYS]


def test_frozen_parameters_are_not_counted() -> None:
    net = ODENet()
    net.head.requires_grad_(False)
    assert net.num_params == 10_564 - (10 * 6 * 13**2 + 10)


@pytest.mark.parametrize(("net", "blocks"), [(ODENet, 1), (ResNet, 0)])
def test_ode_blocks_are_found(net: type[Classifier], blocks: int) -> None:
    made = net()
    assert made.ode_blocks == [m for m in made.children() if isinstance(m, ODEBlock)]
    assert len(made.ode_blocks) == blocks


def test_options_reach_the_block() -> None:
    class Still(Field):
        """dy/dt = 0."""

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.zeros_like(y)

    field, solver, gradient = Still(), RK4(num_steps=1), Checkpoint()
    net = ODENet(channels=2, solver=solver, gradient=gradient, field=field, max_nfe=3)
    block = net.block
    assert (block.field, block.solver, block.gradient, block.max_nfe) == (field, solver, gradient, 3)
    with pytest.raises(SolverError, match="max_nfe = 3"):
        net(images())
    block.max_nfe = 4
    x = images()
    assert torch.equal(net(x), net.head(net.stem(x)))


@pytest.mark.parametrize("channels", [0, -1, 2.0, "6", None])
@pytest.mark.parametrize("net", [ODENet, ResNet])
def test_bad_width_is_refused(net: Any, channels: Any) -> None:
    with pytest.raises(ValueError, match="channels"):
        net(channels=channels)


def test_negative_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks"):
        ResNet(blocks=-1)


def test_classifier_must_implement_forward() -> None:
    with pytest.raises(TypeError, match="forward"):
        Classifier()  # type: ignore[abstract]


def test_samples_of_a_batch_do_not_mix() -> None:
    """Group norm and the ODE treat each image by itself, where the steps are the same."""
    x = images(4)
    for net in (make(ResNet, blocks=2), make(ODENet, solver=RK4(num_steps=2))):
        together = net(x)
        alone = torch.cat([net(x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


class PostField(nn.Module):
    """The post's f(x) = gn(conv(relu(gn(x)))), by plain function calls on a network's weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(weights["norm.weight"])
        self.norm_bias = nn.Parameter(weights["norm.bias"])
        self.conv_weight = nn.Parameter(weights["conv.weight"])
        self.conv_bias = nn.Parameter(weights["conv.bias"])

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = F.group_norm(x, 6, self.norm_weight, self.norm_bias)
        x = F.relu(x)
        x = F.conv2d(x, self.conv_weight, self.conv_bias, padding=1)
        return F.group_norm(x, 6, self.norm_weight, self.norm_bias)


def post_stem(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    x = F.conv2d(x, weights["stem.conv.weight"], weights["stem.conv.bias"])
    return F.relu(F.group_norm(x, 6, weights["stem.norm.weight"], weights["stem.norm.bias"]))


def post_head(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    x = F.avg_pool2d(x, 2).view(-1, 6 * 13 * 13)
    return F.linear(x, weights["head.fc.weight"], weights["head.fc.bias"])


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        (TorchDiffEq("dopri5", 0.1, 0.1), Adjoint(normalise=False)),
        # this project's own solver makes the same choices, and the same numbers to rounding
        (Dopri5(0.1, 0.1), Adjoint(normalise=False)),
    ],
    ids=["TorchDiffEq", "Dopri5"],
)
def test_ode_net_equals_the_post(solver: Solver, gradient: Gradient) -> None:
    """In float64: in float32 rounding turns a relu on or off here and there, and the derivatives with it."""
    net, x, labels = make(ODENet, solver=solver, gradient=gradient).double(), images(16).double(), torch.arange(16) % 10
    logits = net(x)
    F.cross_entropy(logits, labels).backward()

    weights = {key: value.detach().clone().requires_grad_() for key, value in net.named_parameters()}
    field = PostField({key: weights[f"block.field.{key}"].detach() for key in FIELD_KEYS})
    start = post_stem(x, weights)
    time = torch.tensor([0, 1]).double()
    end = torchdiffeq.odeint_adjoint(field, start, time, rtol=1e-1, atol=1e-1)
    assert isinstance(end, Tensor)
    expected = post_head(end[1], weights)
    F.cross_entropy(expected, labels).backward()

    assert relative_error(logits, expected) < 1e-12
    grads = {key: value.grad for key, value in weights.items()}
    for key, param in zip(FIELD_KEYS, field.parameters(), strict=True):
        grads[f"block.field.{key}"] = param.grad
    largest = max(float(grad.abs().max()) for grad in grads.values() if grad is not None)
    for key, param in net.named_parameters():
        truth = grads[key]
        assert truth is not None
        # rounding is in units of the largest: the bias in front of a norm has no gradient but rounding
        assert float((param.grad - truth).abs().max()) < 1e-10 * (float(truth.abs().max()) + 1e-2 * largest), key


def test_res_net_equals_its_formula() -> None:
    """x + f(x) block by block, each with weights of its own, between the post's stem and head."""
    net, x = make(ResNet, blocks=3), images()
    weights = dict(net.named_parameters())
    y = post_stem(x, weights)
    for i in range(3):
        field = PostField({key: weights[f"blocks.{i}.field.{key}"].detach() for key in FIELD_KEYS})
        y = y + field(torch.tensor(0.0), y)
    torch.testing.assert_close(net(x), post_head(y, weights))


def test_res_net_of_shared_weights_is_euler_s_method() -> None:
    """Residual blocks sharing a field are Euler steps of size 1, which is where ODE-Nets come from."""
    net = make(ResNet, blocks=1)
    ode = make(ODENet, solver=TorchDiffEq("euler", options={"step_size": 1.0}))
    ode.load_state_dict({key.replace("blocks.0.", "block."): value for key, value in net.state_dict().items()})
    torch.testing.assert_close(ode(images()), net(images()))


@pytest.mark.parametrize(("part", "shape"), [(Stem(5), (2, 5, 26, 26)), (Head(5), (2, 10))])
def test_parts_keep_to_their_shapes(part: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 1, 28, 28) if isinstance(part, Stem) else torch.randn(2, 5, 26, 26)
    assert part(x).shape == shape


@pytest.mark.parametrize("size", [(26, 26), (7, 11), (2, 3)])
def test_the_head_s_pool_is_torch_s(size: tuple[int, int]) -> None:
    """Of an odd side the last row is left out by both."""
    head, y = Head(5, (1, size[0] + 2, size[1] + 2), 4), torch.randn(2, 5, *size)
    torch.testing.assert_close(head(y), head.fc(F.avg_pool2d(y, 2).flatten(1)))
