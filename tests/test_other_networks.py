"""The networks of the papers, the pyramid, and networks for other images and classes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from odenet_lightning.fields import BottleneckField, ConvField, TimeBiasField, TimeConvField
from odenet_lightning.models import (
    AugmentedODENet,
    Classifier,
    Composed,
    ODENet,
    PaperODENet,
    PaperResNet,
    PyramidODENet,
    ResNet,
)
from odenet_lightning.models.augmented import FlatHead
from odenet_lightning.models.pyramid import PositionHead
from odenet_lightning.solvers import Midpoint
from tests.networks import make


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
    for whole in (least, np.int64(least)):
        made(**{name: whole})


@pytest.mark.parametrize("net", SMALLEST)
def test_image_shapes_are_whole_numbers(net: Any) -> None:
    net(image_shape=tuple(np.array([1, 28, 28])))
    for shape in ((1, 28.0, 28), (True, 28, 28), (1, 28, 28.5)):
        with pytest.raises(ValueError, match=r"image_shape must be whole numbers of .*, not .* x 28"):
            net(image_shape=shape)


def test_other_shapes_parameters() -> None:
    """By the book, for 3 x 40 x 32 images in 26 classes: 38 x 30 after the stem, 19 x 15 after the pool."""
    stem, field, head = 27 * 6 + 6 + 12, 9 * 36 + 6 + 12, 26 * 6 * 19 * 15 + 26
    assert ODENet(image_shape=(3, 40, 32), classes=26).num_params == stem + field + head
