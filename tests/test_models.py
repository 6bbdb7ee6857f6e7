"""Networks: shapes, sizes, names of their weights, and the post's formulas written down once more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional as F

from odenet_lightning.block import ODEBlock
from odenet_lightning.fields import BottleneckField, ConvField, Field, TimeBiasField, TimeConvField
from odenet_lightning.gradients import Adjoint, Backprop, Checkpoint, Gradient
from odenet_lightning.models import (
    AugmentedODENet,
    Classifier,
    Composed,
    Head,
    ODENet,
    PaperODENet,
    PaperResNet,
    PyramidODENet,
    ResNet,
    Stem,
)
from odenet_lightning.models.augmented import FlatHead
from odenet_lightning.models.pyramid import PositionHead
from odenet_lightning.solvers import RK4, Dopri5, Midpoint, Solver, SolverError, TorchDiffEq
from tests.problems import relative_error

STEM_KEYS = ["stem.conv.weight", "stem.conv.bias", "stem.norm.weight", "stem.norm.bias"]
FIELD_KEYS = ["norm.weight", "norm.bias", "conv.weight", "conv.bias"]
HEAD_KEYS = ["head.fc.weight", "head.fc.bias"]


def images(batch: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 1, 28, 28) * 2 - 1


def make(net: type[Classifier], **options: Any) -> Any:
    """A network whose weights are all random: fresh norms, being 1 and 0, would hide a wrong one."""
    torch.manual_seed(0)
    made = net(**options)
    for module in made.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return made


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


# --- the post's formulas


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


@pytest.mark.parametrize(
    ("net", "params"),
    [
        (lambda: PaperODENet(), 208_266),
        (lambda: PaperResNet(blocks=6), 576_778),
        (lambda: PaperResNet(blocks=1), 206_858),
        (lambda: PaperResNet(blocks=0), 132_874),
    ],
    ids=["ode-net", "resnet-6", "resnet-1", "stem-only"],
)
@torch.no_grad()
def test_the_papers_networks_have_its_parameters(net: Callable[[], Classifier], params: int) -> None:
    made = net()
    assert made.num_params == params
    assert made(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_augmented_net_has_its_parameters_and_zeros() -> None:
    torch.manual_seed(0)
    net = AugmentedODENet(solver=Midpoint(num_steps=1))
    assert net.num_params == 84_816
    assert isinstance(net.head, FlatHead)
    x = torch.rand(2, 1, 28, 28)
    state = net.stem(x)
    assert state.shape == (2, 6, 28, 28)
    assert torch.equal(state[:, :1], x)
    assert not state[:, 1:].any()
    middle = state + net.block.field(torch.tensor(0.0), state) / 2
    expected = net.head.fc((state + net.block.field(torch.tensor(0.5), middle)).flatten(1))
    torch.testing.assert_close(net(x), expected)
    assert AugmentedODENet(augment_dim=0)(x).shape == (2, 10)


def test_composed_is_its_parts_in_order() -> None:
    torch.manual_seed(0)
    x, twin = torch.rand(3, 1, 28, 28), ResNet(4, blocks=2)
    composed = Composed(twin.stem, twin.head, trunk=twin.blocks)
    assert torch.equal(composed(x), twin(x))
    assert torch.equal(Composed(twin.stem, twin.head)(x), twin.head(twin.stem(x)))
    assert composed.num_params == twin.num_params


def test_paper_net_takes_another_field() -> None:
    net = PaperODENet(8, field=ConvField(8), solver=Midpoint(num_steps=1))
    assert isinstance(net.block.field, ConvField)
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_pyramid_net_is_small_and_its_memory_is_channels_last() -> None:
    torch.manual_seed(0)
    net = PyramidODENet()
    assert net.num_params == 10_074 <= 10_564
    shapes = [(16, 14, 14), (24, 7, 7)]
    inputs: list[torch.Tensor] = []
    for block in net.ode_blocks:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    x = torch.rand(3, 1, 28, 28)
    assert net(x).shape == (3, 10)
    assert [tuple(y.shape[1:]) for y in inputs] == shapes
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in inputs)
    with pytest.raises(ValueError, match="channels must be a whole number"):
        PyramidODENet(channels=(16, 0))


def test_position_head_starts_as_an_average() -> None:
    torch.manual_seed(0)
    head, y = PositionHead(5).eval(), torch.rand(2, 5, 7, 7)
    expected = head.fc(F.silu(head.norm(y)).mean((2, 3)))
    torch.testing.assert_close(head(y), expected)


SMALLEST = {ODENet: 4, ResNet: 4, PaperODENet: 6, PaperResNet: 6, AugmentedODENet: 1, PyramidODENet: 4}


@pytest.mark.parametrize("net", SMALLEST)
def test_networks_for_other_images_and_classes(net: type[Classifier]) -> None:
    """Odd sides and the smallest ones, too."""
    small = SMALLEST[net]
    for channels, height, width, classes in ((3, 40, 32, 26), (1, 9, 13, 2), (2, small, small, 3)):
        made = make(net, image_shape=(channels, height, width), classes=classes)
        logits = made.train()(torch.rand(4, channels, height, width) * 2 - 1)
        assert logits.shape == (4, classes)
        F.cross_entropy(logits, torch.arange(4) % classes).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("net", SMALLEST)
def test_images_and_classes_are_checked(net: type[Classifier]) -> None:
    small = SMALLEST[net]
    for shape in ((1, small - 1, 28), (1, 28, small - 1), (0, 28, 28)):
        with pytest.raises(ValueError, match=f"image_shape must .* at least 1 x {small} x {small}, not {shape[0]} x "):
            net(image_shape=shape)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="classes must be a whole number of at least 2, not 1"):
        net(classes=1)  # type: ignore[call-arg]


SIZES: list[tuple[Any, str, int]] = [
    *((net, "channels", 1) for net in (ODENet, ResNet, PaperODENet, PaperResNet)),
    *((net, "blocks", 0) for net in (ResNet, PaperResNet)),
    *((net, "augment_dim", 0) for net in (ODENet, AugmentedODENet)),
    *((net, "hidden", 1) for net in (AugmentedODENet, PyramidODENet, BottleneckField)),
    *((net, "max_nfe", 1) for net in (ODENet, PaperODENet, AugmentedODENet, PyramidODENet)),
    *((net, "classes", 2) for net in SMALLEST),
    *((field, "channels", 1) for field in (ConvField, TimeConvField, TimeBiasField, BottleneckField)),
]


@pytest.mark.parametrize(("made", "name", "least"), SIZES)
def test_sizes_are_whole_numbers(made: Any, name: str, least: int) -> None:
    for value in (least - 1, least + 0.5, least + 1.0, True, None, "3"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least {least}, not {value!r}"):
            made(**{name: value})
    made(**{name: least})


@pytest.mark.parametrize("net", SMALLEST)
def test_image_shapes_are_whole_numbers(net: Any) -> None:
    for shape in ((1, 28.0, 28), (True, 28, 28), (1, 28, 28.5)):
        with pytest.raises(ValueError, match=r"image_shape must be whole numbers of .*, not .* x 28"):
            net(image_shape=shape)


def test_other_shapes_parameters() -> None:
    """By the book, for 3 x 40 x 32 images in 26 classes: 38 x 30 after the stem, 19 x 15 after the pool."""
    stem, field, head = 27 * 6 + 6 + 12, 9 * 36 + 6 + 12, 26 * 6 * 19 * 15 + 26
    assert ODENet(image_shape=(3, 40, 32), classes=26).num_params == stem + field + head


@pytest.mark.parametrize("size", [(26, 26), (7, 11), (2, 3)])
def test_the_head_s_pool_is_torch_s(size: tuple[int, int]) -> None:
    """Of an odd side the last row is left out by both."""
    head, y = Head(5, (1, size[0] + 2, size[1] + 2), 4), torch.randn(2, 5, *size)
    torch.testing.assert_close(head(y), head.fc(F.avg_pool2d(y, 2).flatten(1)))
