import math

import pytest
import torch
from torch import nn

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.splat import SplitAttention


def slow_split_attention(layer: SplitAttention, image: torch.Tensor) -> torch.Tensor:
    """The paper's §3.1 for one C x H x W image, without norms: a loop over cardinal groups, splits and channels."""
    maps = torch.relu(layer.conv(image[None]))[0]
    channels = len(maps) // layer.radix
    per_group = channels // layer.groups
    splits = [maps[split * channels : (split + 1) * channels] for split in range(layer.radix)]
    pooled = torch.stack([sum(split[channel].mean() for split in splits) for channel in range(channels)])
    hidden = torch.relu(layer.fc1(pooled.view(1, -1, 1, 1)))
    logits = layer.fc2(hidden).flatten()
    out = []
    for group in range(layer.groups):
        for channel in range(per_group):
            scores = [logits[(group * layer.radix + split) * per_group + channel] for split in range(layer.radix)]
            if layer.radix == 1:
                weights = [1 / (1 + torch.exp(-scores[0]))]
            else:
                weights = [torch.exp(score) / sum(torch.exp(other) for other in scores) for score in scores]
            position = group * per_group + channel
            out.append(sum(weight * split[position] for weight, split in zip(weights, splits, strict=True)))
    return torch.stack(out)


@pytest.mark.parametrize("radix", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("per_split", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_slow_obvious_one(radix: int, groups: int, per_split: int, stride: int) -> None:
    torch.manual_seed(radix * 100 + groups * 10 + per_split)
    channels = radix * groups * per_split
    layer = SplitAttention(channels, stride=stride, groups=groups, radix=radix, norm="").double()
    images = torch.randn(2, channels, 5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, channels, math.ceil(5 / stride), math.ceil(4 / stride), dtype=torch.float64)
    variables = [images, *layer.parameters()]

    fast = layer(images)
    slow = torch.stack([slow_split_attention(layer, image) for image in images])

    torch.testing.assert_close(fast, slow)
    fast_gradients = torch.autograd.grad((fast * target).sum(), variables)
    slow_gradients = torch.autograd.grad((slow * target).sum(), variables)
    torch.testing.assert_close(fast_gradients, slow_gradients)


def test_norms_stand_behind_the_convolution_and_fc1() -> None:
    layer = SplitAttention(8, norm="BN")
    assert list(dict(layer.named_children())) == ["conv", "bn0", "fc1", "bn1", "fc2"]
    with torch.no_grad():
        layer.bn0.weight.zero_()
        layer.bn0.bias.fill_(-1.0)
    assert (layer(torch.randn(2, 8, 4, 4)) == 0).all(), "bn0's output passes a ReLU"


def test_weights_of_the_splits_sum_to_one() -> None:
    layer = SplitAttention(12, radix=3, groups=2)
    weights = layer.attention(torch.randn(4, 12, 1, 1) * 10)
    assert weights.shape == (4, 3, 12, 1, 1)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, 12, 1, 1))


@pytest.mark.parametrize(("channels", "radix", "hidden"), [(64, 2, 32), (128, 2, 64), (16, 2, 32), (256, 4, 256)])
def test_shapes_are_the_published_ones(channels: int, radix: int, hidden: int) -> None:
    shapes = {name: tuple(value.shape) for name, value in SplitAttention(channels, radix=radix).named_parameters()}
    assert shapes == {
        "conv.weight": (channels * radix, channels // radix, 3, 3),
        "bn0.weight": (channels * radix,),
        "bn0.bias": (channels * radix,),
        "fc1.weight": (hidden, channels, 1, 1),
        "fc1.bias": (hidden,),
        "bn1.weight": (hidden,),
        "bn1.bias": (hidden,),
        "fc2.weight": (channels * radix, hidden, 1, 1),
        "fc2.bias": (channels * radix,),
    }


@pytest.mark.parametrize(("gn_groups", "expected"), [(32, 8), (8, 8), (4, 4), (12, 4), (1, 1)])
def test_group_norm_of_the_pooled_map_lets_the_image_through(gn_groups: int, expected: int) -> None:
    layer = SplitAttention(64, norm="GN", gn_groups=gn_groups)
    assert isinstance(layer.bn1, nn.GroupNorm)
    assert layer.bn1.num_groups == expected
    weights = layer.attention(torch.randn(2, 64, 1, 1) * 10)
    assert (weights[0] - weights[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("channels", "radix", "groups"), [(9, 2, 1), (8, 2, 3), (8, 0, 1), (36, 2, 3)])
def test_channels_that_cannot_be_split_are_refused(channels: int, radix: int, groups: int) -> None:
    with pytest.raises(ConfigError, match=f"RADIX {radix}, NUM_GROUPS {groups}: cannot split a bottleneck of {channels}"):
        SplitAttention(channels, radix=radix, groups=groups)
