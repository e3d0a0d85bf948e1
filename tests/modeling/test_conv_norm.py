"""What is done in one pass has the results and gradients of what it stands for; what must not be folded is not."""

from collections.abc import Callable, Iterator

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from cupre_d2.modeling.conv_norm import ConvNorm, ConvNormReLU, as_scale_and_shift
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


def with_relu(kernel: int, make: Callable[[int], nn.Module], groups: int = 1, stride: int = 1) -> ConvNormReLU:
    norm = random_norm(make(8))
    return ConvNormReLU(
        6, 8, kernel_size=kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False, norm=norm
    ).eval()


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


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (1, 2, 1)])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, FrozenBatchNorm2d, lambda channels: nn.GroupNorm(2, channels)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_convolution_norm_addition_and_relu(
    make: Callable[[int], nn.Module],
    kernel: int,
    stride: int,
    groups: int,
    size: int,
    layout: torch.memory_format,
    adds: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    layer = with_relu(kernel, make, groups, stride).to(dtype)
    images = torch.randn(2, 6, size, size, dtype=dtype).to(memory_format=layout).requires_grad_()
    maps = layer.norm(nn.functional.conv2d(images, layer.weight, None, stride, kernel // 2, 1, groups))
    addend = torch.randn_like(maps, requires_grad=True) if adds else None
    variables = [images, *layer.parameters(), *([addend] if adds else [])]
    expected = torch.relu(maps + addend if adds else maps)
    found = layer(images, addend) if adds else layer(images)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    kept = direction.clone()
    gradients = torch.autograd.grad(found, variables, direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, variables, kept), rtol=1e-4, atol=1e-4)
    assert torch.equal(direction, kept) or not adds
    with torch.no_grad():
        torch.testing.assert_close(layer(images, addend), expected)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_gradients_to_some_of_the_inputs() -> None:
    layer = with_relu(3, FrozenBatchNorm2d)
    layer.requires_grad_(False)
    images = torch.randn(1, 6, 16, 16)
    assert not layer(images).requires_grad
    (gradient,) = torch.autograd.grad(layer(images.requires_grad_()).sum(), images)
    maps = layer.norm(nn.functional.conv2d(images, layer.weight, padding=1))
    torch.testing.assert_close(gradient, torch.autograd.grad(maps.relu().sum(), images)[0])


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    layer, (images, addend) = with_relu(3, nn.BatchNorm2d), (torch.randn(1, 6, 8, 8), torch.randn(1, 8, 8, 8))

    def norm_of_gradient(call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x, y = images.clone().requires_grad_(), addend.clone().requires_grad_()
        first = torch.autograd.grad((call(x, y) ** 2).sum(), (x, y), create_graph=True)
        return torch.autograd.grad(sum((one**2).sum() for one in first), (x, y, *layer.parameters()))

    apart = norm_of_gradient(lambda x, y: torch.relu(layer.norm(nn.functional.conv2d(x, layer.weight, padding=1)) + y))
    for one, other in zip(norm_of_gradient(layer), apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_under_autocast() -> None:
    layer, images = with_relu(3, nn.BatchNorm2d), torch.randn(2, 6, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(images).dtype == torch.bfloat16
    torch.testing.assert_close(layer(images), layer.double()(images.double()).float())


def test_no_images() -> None:
    assert with_relu(3, nn.BatchNorm2d)(torch.randn(0, 6, 16, 16)).shape == (0, 8, 16, 16)


def test_a_convolution_of_one_tap_is_onednns_with_one_thread(one_thread: None) -> None:
    """Else it takes twice the time; see `geometry`."""
    layer = ConvNorm(64, 64, kernel_size=1, bias=False, norm=None)
    images = torch.randn(1, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(images)
    assert "aten::mkldnn_convolution" in {event.key for event in profile.key_averages()}
