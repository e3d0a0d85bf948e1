"""A folded norm changes no result and no gradient; what must not be folded is not."""

from collections.abc import Callable, Iterator

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from cupre_d2.modeling.conv_norm import ConvNorm, as_scale_and_shift
from cupre_d2.modeling.norms import TinyBatchNorm2d


def random_norm(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, value in norm.state_dict().items():
            if value.is_floating_point():
                value.uniform_(*((0.5, 1.5) if name in ("weight", "running_var") else (-1, 1)))
    return norm


def two_layers(norm: nn.Module, training: bool) -> tuple[ConvNorm, Callable[[torch.Tensor], torch.Tensor]]:
    """The layer, and its convolution and norm one after the other."""
    layer = ConvNorm(6, 8, kernel_size=3, stride=2, padding=1, bias=False, norm=random_norm(norm)).train(training)
    return layer, lambda x: layer.norm(nn.functional.conv2d(x, layer.weight, stride=2, padding=1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize(
    "make", [TinyBatchNorm2d, nn.BatchNorm2d, FrozenBatchNorm2d, lambda channels: nn.GroupNorm(2, channels)]
)
def test_equals_convolution_and_norm(make: Callable[[int], nn.Module], size: int, training: bool) -> None:
    torch.manual_seed(0)
    layer, both = two_layers(make(8), training)
    images = torch.randn(2, 6, size, size, requires_grad=True)
    variables = [images, *layer.parameters()]
    one, other = layer(images), both(images)
    torch.testing.assert_close(one, other)
    direction = torch.randn_like(one)
    torch.testing.assert_close(
        torch.autograd.grad(one, variables, direction), torch.autograd.grad(other, variables, direction)
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, FrozenBatchNorm2d, lambda channels: nn.GroupNorm(2, channels)])
def test_equals_a_1x1_convolution_and_norm(make: Callable[[int], nn.Module], stride: int) -> None:
    torch.manual_seed(0)
    layer = ConvNorm(6, 8, kernel_size=1, stride=stride, bias=False, norm=random_norm(make(8))).eval()
    images = torch.randn(2, 6, 9, 9, requires_grad=True)
    one, other = layer(images), layer.norm(nn.functional.conv2d(images, layer.weight, stride=stride))
    torch.testing.assert_close(one, other)
    variables, direction = [images, *layer.parameters()], torch.randn_like(one)
    torch.testing.assert_close(
        torch.autograd.grad(one, variables, direction), torch.autograd.grad(other, variables, direction)
    )


def test_running_statistics_are_taken_in_training() -> None:
    layer, _ = two_layers(TinyBatchNorm2d(8), training=True)
    before = layer.norm.running_mean.clone()
    layer(torch.randn(2, 6, 16, 16))
    assert not torch.equal(layer.norm.running_mean, before)


def test_only_standing_batch_norms_are_scale_and_shift() -> None:
    assert as_scale_and_shift(None) is None
    assert as_scale_and_shift(nn.GroupNorm(2, 8).eval()) is None
    assert as_scale_and_shift(nn.BatchNorm2d(8)) is None
    assert as_scale_and_shift(nn.BatchNorm2d(8, affine=False).eval()) is None
    assert as_scale_and_shift(nn.BatchNorm2d(8, track_running_stats=False).eval()) is None
    assert as_scale_and_shift(FrozenBatchNorm2d(8)) is not None
    assert as_scale_and_shift(nn.SyncBatchNorm(8).eval()) is not None


@pytest.mark.parametrize("size", [4, 16])
def test_a_map_is_kept_for_the_norm_only_where_it_is_smaller_than_the_weight(size: int) -> None:
    layer, _ = two_layers(TinyBatchNorm2d(8), training=False)
    out = layer(torch.randn(1, 6, size, size))
    folded = size * size >= 6 * 9
    assert ("NativeBatchNorm" in out.grad_fn.name()) == (not folded)


@pytest.fixture()
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("norm", [None, FrozenBatchNorm2d(64), nn.GroupNorm(8, 64)])
def test_one_tap_is_onednns_with_one_thread_too(one_thread: None, norm: nn.Module | None) -> None:
    layer = ConvNorm(64, 64, kernel_size=1, bias=False, norm=norm)
    images = torch.randn(1, 64, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = layer(images)
        out.backward(torch.ones_like(out))
    used = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in used and not any("slow_conv2d" in name for name in used)
