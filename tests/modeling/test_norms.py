import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone
from torch import nn

from cupre_d2.errors import ConfigError
from cupre_d2.modeling import norms
from cupre_d2.modeling.norms import NORMS, get_norm, revert_sync_batchnorm


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
    monkeypatch.setattr(norms.comm, "get_world_size", lambda: 2)
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
