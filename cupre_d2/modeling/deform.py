"""What a deformable convolution samples where (Dai et al. 2017; modulated: Zhu et al. 2019), as in Detectron2."""

import torch
from detectron2.layers import Conv2d
from torch import nn

TAPS = 9


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
