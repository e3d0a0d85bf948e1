"""Split attention (Zhang et al. 2020, ResNeSt, §3.1), with the parameter names of detectron2-ResNeSt.

Its convolution may be deformable (Dai et al. 2017; modulated: Zhu et al. 2019): what it samples where is here too.
"""

import math

import torch
from detectron2.layers import Conv2d
from torch import nn
from torchvision.ops import DeformConv2d, deform_conv2d

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.layers import as_scale_and_shift, get_norm, is_smaller_than_map

REDUCTION = 4
SMALLEST_HIDDEN = 32
# Fewer values a group, and GroupNorm of a 1x1 map leaves little of its input: of a lone value, nothing.
VALUES_PER_GROUP = 4
# Places that a 3x3 convolution samples.
TAPS = 9


class SplitAttention(nn.Module):
    """A 3x3 convolution into `radix` splits, and their sum weighted by attention over the splits.

    conv -> bn0 -> ReLU -> radix splits; their sum, globally pooled -> fc1 -> bn1 -> ReLU -> fc2 -> softmax over the
    splits (sigmoid when radix is 1), for each cardinal group apart -> weighted sum of the splits.

    The paper has no GroupNorm. Here bn1, whose map is 1x1, takes as many groups as leave each four values or more: with
    one value a group, as in 32 groups of 32 channels, its output would not depend on the image.

    Args:
        channels: of input and output; divisible by groups * radix.
        stride: of the 3x3 convolution.
        groups: cardinality.
        radix: splits of a cardinal group, 1 or more.
        deformable: the 3x3 convolution takes offsets, and a modulation where there is one, with the input.
        norm, gn_groups: see `get_norm`.

    Raises:
        ConfigError: channels that cannot be split so.
    """

    def __init__(
        self,
        channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        radix: int = 2,
        deformable: bool = False,
        norm: str = "BN",
        gn_groups: int = 32,
    ) -> None:
        super().__init__()
        hidden = max(channels * radix // REDUCTION, SMALLEST_HIDDEN)
        if min(groups, radix) < 1 or channels % (groups * radix) or hidden % groups:
            raise ConfigError(
                f"MODEL.RESNETS.RADIX {radix}, NUM_GROUPS {groups}: cannot split a bottleneck of {channels} channels "
                f"(attention: {hidden}); expected values of 1 or more whose product divides the channels"
            )
        self.radix = radix
        self.groups = groups
        convolution = DeformConv2d if deformable else Conv2d
        self.conv = convolution(
            channels,
            channels * radix,
            kernel_size=3,
            stride=stride,
            padding=1,
            groups=groups * radix,
            bias=False,
        )
        self.bn0 = get_norm(norm, channels * radix, gn_groups)
        self.fc1 = Conv2d(channels, hidden, kernel_size=1, groups=groups)
        self.bn1 = get_norm(norm, hidden, math.gcd(gn_groups, hidden // VALUES_PER_GROUP))
        self.fc2 = Conv2d(hidden, channels * radix, kernel_size=1, groups=groups)

    def forward(self, x: torch.Tensor, *deformation: torch.Tensor) -> torch.Tensor:
        """N x C x H x W -> N x C x ceil(H/stride) x ceil(W/stride); `deformation` as `split_deformation` gives it."""
        maps = torch.relu_(self.convolved(x, *deformation))
        # Not the mean: the gradient of a sum needs no map of its own. In float16 it might overflow.
        pooled = maps.sum((2, 3), keepdim=True, dtype=torch.promote_types(maps.dtype, torch.float32)) / maps[0, 0].numel()
        pooled = pooled.to(maps.dtype).unflatten(1, (self.radix, -1)).sum(1)
        # Under autocast a softmax is float32, and would make the sum so.
        weights = self.attention(pooled).to(maps.dtype).unbind(1)
        # Last, so that its gradient comes first and takes up that of the sum in place.
        splits = maps.chunk(self.radix, dim=1)
        if self.radix == 2:
            return torch.lerp(splits[1], splits[0], weights[0])
        total = splits[0] * weights[0]
        for split, weight in zip(splits[1:], weights[1:], strict=True):
            total = total + split * weight
        return total

    def convolved(self, x: torch.Tensor, *deformation: torch.Tensor) -> torch.Tensor:
        """bn0 of the 3x3 convolution; in one pass where `as_scale_and_shift` allows it."""
        folded = as_scale_and_shift(self.bn0) if is_smaller_than_map(self.conv.weight, x) else None
        weight = self.conv.weight * folded[0] if folded else self.conv.weight
        if not deformation:
            conv = self.conv
            maps = nn.functional.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        else:
            offsets, *mask = deformation
            maps = deform_conv2d(
                x, offsets, weight, None, self.conv.stride, self.conv.padding, mask=mask[0] if mask else None
            )
            # torchvision's kernels return their own layout.
            maps = maps.contiguous(memory_format=torch.channels_last)
        if folded:
            return maps.add_(folded[1])
        return self.bn0(maps) if self.bn0 else maps

    def attention(self, pooled: torch.Tensor) -> torch.Tensor:
        """Weights of the splits, which sum to 1 if there are several: N x C x 1 x 1 -> N x radix x C x 1 x 1."""
        hidden = self.fc1(pooled)
        logits = self.fc2(torch.relu(self.bn1(hidden) if self.bn1 else hidden))
        if self.radix == 1:
            return torch.sigmoid(logits).unsqueeze(1)
        batch = logits.shape[0]
        # fc2's channels run over cardinal groups, then splits, then the channels of a group.
        by_group = logits.view(batch, self.groups, self.radix, -1).transpose(1, 2)
        return torch.softmax(by_group, dim=1).reshape(batch, self.radix, -1, 1, 1)


def build_offset_conv(channels: int, *, stride: int, groups: int, modulated: bool) -> Conv2d:
    """The 3x3 convolution whose output, at first all 0, says where a deformable 3x3 convolution samples.

    detectron2-ResNeSt groups it as it groups the deformable channels; Detectron2 itself does not.

    Args:
        channels: of the input; divisible by `groups`.
        groups: groups of channels that share offsets.
        modulated: 27 outputs a group, else 18.
    """
    conv = Conv2d(channels, (3 if modulated else 2) * TAPS * groups, kernel_size=3, stride=stride, padding=1, groups=groups)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def split_deformation(maps: torch.Tensor, groups: int) -> tuple[torch.Tensor, ...]:
    """Offsets and modulation from the output of `build_offset_conv`.

    The published layout: of thirds (o1, o2, m) the offsets are o1 and o2 behind each other, which is the leading 18·G
    channels, and the modulation is sigmoid(m). The offsets are read as G groups x 9 taps, row by row, x (y, x): y, the
    row, first, although Detectron2 calls the thirds x and y. That order is torchvision's, tested here; Detectron2's CUDA
    kernels, which its wheel does not hold the source of, have the same from memory.

    Args:
        maps: N x 27·G x H x W, or N x 18·G x H x W without modulation.
        groups: G.

    Returns:
        (offsets N x 18·G x H x W in pixels, modulation N x 9·G x H x W in 0..1), or the offsets alone.
    """
    offsets = maps[:, : 2 * TAPS * groups]
    if maps.shape[1] == offsets.shape[1]:
        return (offsets,)
    return offsets, maps[:, offsets.shape[1] :].sigmoid()
