"""Norms that train on little, and convolutions with a folded norm, which changes no result and no gradient."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone
from torch import nn

from cupre_d2.errors import ConfigError
from cupre_d2.modeling import layers
from cupre_d2.modeling.layers import NORMS, ConvNorm, TinyBatchNorm2d, as_scale_and_shift, get_norm, revert_sync_batchnorm


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"])
def test_batch_norms_of_one_process_are_batch_norm(norm: str) -> None:
    layer = get_norm(norm, 4)
    plain = nn.BatchNorm2d(4)
    images = torch.randn(2, 4, 3, 3)
    assert layer is not None
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(layer(images), plain(images))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_norm_trains_on_pooled_maps(norm: str, batch: int) -> None:
    layer = get_norm(norm, 8, gn_groups=2) or nn.Identity()
    images = torch.randn(batch, 8, 1, 1, requires_grad=True)
    out = layer(images)
    out.sum().backward()
    assert out.shape == images.shape
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_one_value_a_channel_uses_running_statistics_and_keeps_them() -> None:
    layer = get_norm("BN", 3)
    assert layer is not None
    layer(torch.randn(4, 3, 2, 2) * 5 + 1)
    before = copy.deepcopy(layer.state_dict())
    value = torch.randn(1, 3, 1, 1)
    in_training = layer(value)
    torch.testing.assert_close(layer.state_dict(), before)
    torch.testing.assert_close(in_training, layer.eval()(value))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (16, 16), (48, 16), (5, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    layer = get_norm("GN", channels, gn_groups=32)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


def test_synchronises_among_processes_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert isinstance(get_norm("SyncBN", 4), nn.SyncBatchNorm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not isinstance(get_norm("SyncBN", 4), nn.SyncBatchNorm)


def test_frozen_and_none() -> None:
    assert isinstance(get_norm("FrozenBN", 4), FrozenBatchNorm2d)
    assert get_norm("", 4) is None


def test_unknown_norm_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'BatchNorm': expected one of 'BN', 'SyncBN'"):
        get_norm("BatchNorm", 4)


class _Pyramid(Backbone):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"res2": x, "res3": x[:, :, ::2, ::2]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=3, stride=4), "res3": ShapeSpec(channels=3, stride=8)}


def test_revert_replaces_the_norms_of_detectron2s_own_modules() -> None:
    fpn = FPN(_Pyramid(), ["res2", "res3"], 8, norm="SyncBN")
    fpn.fpn_lateral2.norm.weight.requires_grad_(False)
    fpn.fpn_lateral3.norm.running_mean.fill_(0.25)
    tensors = {**dict(fpn.named_parameters()), **dict(fpn.named_buffers())}
    values = copy.deepcopy(fpn.state_dict())

    assert revert_sync_batchnorm(fpn) is fpn

    assert not any(isinstance(module, nn.SyncBatchNorm) for module in fpn.modules())
    torch.testing.assert_close(fpn.state_dict(), values)
    # The very tensors: an optimizer that holds them goes on training this model.
    after = {**dict(fpn.named_parameters()), **dict(fpn.named_buffers())}
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert not fpn.fpn_lateral2.norm.weight.requires_grad

    fpn(torch.randn(2, 3, 8, 8))["p2"].sum().backward()
    assert fpn.fpn_lateral3.norm.weight.grad is not None
    assert fpn.fpn_lateral3.norm.num_batches_tracked == 1


def test_revert_of_a_lone_layer_keeps_its_settings() -> None:
    layer = nn.SyncBatchNorm(4, eps=1e-3, momentum=0.2).eval()
    plain = revert_sync_batchnorm(layer)
    assert isinstance(plain, nn.BatchNorm2d)
    assert (plain.eps, plain.momentum, plain.training) == (1e-3, 0.2, False)


def test_revert_accepts_layers_without_weights_or_statistics() -> None:
    bare = revert_sync_batchnorm(nn.SyncBatchNorm(4, affine=False, track_running_stats=False))
    assert bare(torch.randn(3, 4, 2, 2)).mean().abs() < 1e-6


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
