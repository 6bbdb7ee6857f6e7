"""Vector fields: their groups, their shapes, their formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from odenet_lightning.fields import BottleneckField, Conv, ConvField, Field, TimeBiasField, group_count
from tests.problems import conv_problem


@given(st.integers(1, 600))
def test_group_count_is_the_largest_divisor_of_at_most_32(channels: int) -> None:
    groups = group_count(channels)
    assert 1 <= groups <= min(32, channels)
    assert channels % groups == 0
    assert all(channels % larger for larger in range(groups + 1, min(32, channels) + 1))


@given(st.integers(1, 32))
def test_few_channels_are_normed_one_by_one(channels: int) -> None:
    assert group_count(channels) == channels


@pytest.mark.parametrize("channels", [1, 6, 33, 64])
@pytest.mark.parametrize("size", [(26, 26), (5, 7)])
def test_conv_field_keeps_the_shape(channels: int, size: tuple[int, int]) -> None:
    y = torch.randn(2, channels, *size)
    assert ConvField(channels)(torch.tensor(0.0), y).shape == y.shape


def test_conv_field_keys_and_parameters() -> None:
    state = ConvField().state_dict()
    assert list(state) == ["norm.weight", "norm.bias", "conv.weight", "conv.bias"]
    assert sum(value.numel() for value in state.values()) == 6 + 6 + 6 * 6 * 9 + 6


def test_conv_field_is_norm_conv_relu_norm_with_one_norm() -> None:
    field, y = conv_problem()
    # as trained: fresh from the box the norm has weight 1 and bias 0, and its places could not be told apart
    torch.nn.init.normal_(field.norm.weight)
    torch.nn.init.normal_(field.norm.bias)
    weight, bias = field.norm.weight, field.norm.bias
    expected = F.group_norm(y, 6, weight, bias)
    expected = F.conv2d(F.relu(expected), field.conv.weight, field.conv.bias, padding=1)
    expected = F.group_norm(expected, 6, weight, bias)
    torch.testing.assert_close(field(torch.tensor(0.0), y), expected)


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_conv_has_the_numbers_of_torchs(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    conv = Conv(channels).double()
    x, grad = torch.randn(2, batch, channels, height, width, dtype=torch.float64)
    x.requires_grad_()
    inputs = [x, *conv.parameters()]
    y, expected = conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1)
    assert torch.equal(y, expected)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_conv_has_second_derivatives() -> None:
    torch.manual_seed(0)
    conv, x = Conv(2).double(), torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradgradcheck(of, (x, *conv.parameters()))


def test_conv_gives_derivatives_of_each_sample() -> None:
    torch.manual_seed(0)
    conv, x = Conv(2), torch.randn(3, 2, 4, 4)

    def loss(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x[None],)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(conv.weight.detach(), x)
    for ours, image in zip(each, x, strict=True):
        torch.testing.assert_close(ours, torch.func.grad(loss)(conv.weight.detach(), image))
    conv(x).square().sum().backward()
    assert conv.weight.grad is not None
    torch.testing.assert_close(each.sum(0), conv.weight.grad)


def test_conv_trains_under_autocast() -> None:
    conv, x = Conv(2), torch.randn(2, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


def test_conv_field_is_the_same_at_all_times() -> None:
    field, y = conv_problem()
    assert torch.equal(field(torch.tensor(0.0), y), field(torch.tensor(0.9), y))


def test_conv_field_keeps_nothing_between_calls() -> None:
    field, y = conv_problem()
    before = {key: value.clone() for key, value in field.state_dict().items()}
    first = field(torch.tensor(0.0), y)
    field(torch.tensor(0.0), 3 * y)
    assert torch.equal(field(torch.tensor(0.0), y), first)
    assert all(torch.equal(value, before[key]) for key, value in field.state_dict().items())


def test_field_must_implement_forward() -> None:
    with pytest.raises(TypeError, match="forward"):
        Field()  # type: ignore[abstract]


def test_time_bias_field_moves_its_offset_with_t() -> None:
    torch.manual_seed(0)
    field, y = TimeBiasField(4), torch.randn(2, 4, 5, 5)
    torch.nn.init.normal_(field.bias)

    def whole_norm(x: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
        mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    for t in (0.0, 0.3, 1.0):
        inner = whole_norm(y, field.norm_in)
        expected = whole_norm(field.conv(inner * inner.sigmoid()) + t * field.bias, field.norm_out)
        torch.testing.assert_close(field(torch.tensor(t), y), expected)
    assert not torch.equal(field(torch.tensor(0.0), y), field(torch.tensor(1.0), y))


def test_bottleneck_field_is_three_convolutions() -> None:
    torch.manual_seed(0)
    field, y = BottleneckField(3, hidden=8), torch.randn(2, 3, 6, 6)
    first, middle, last = (layer for layer in field.layers if isinstance(layer, torch.nn.Conv2d))
    expected = last(torch.relu(middle(torch.relu(first(y)))))
    assert torch.equal(field(torch.tensor(0.3), y), expected)
    assert [conv.kernel_size for conv in (first, middle, last)] == [(1, 1), (3, 3), (1, 1)]
