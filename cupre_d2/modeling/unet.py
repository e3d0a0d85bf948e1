"""The decoder of a U-Net (Ronneberger, Fischer and Brox, MICCAI 2015) over a backbone's feature maps."""

from collections.abc import Mapping, Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d, ShapeSpec
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.layers import get_norm

IMAGE_CHANNELS = 3


class UNetDecoder(nn.Module):
    """From the latent, the backbone's coarsest map, to the size of the image, doubling at each step.

    Each step upsamples, joins the backbone's map of that stride and convolves twice, 3 x 3 with norm and ReLU. Where the
    backbone has no map, as at strides 1 and 2 of Detectron2's networks, the image itself is joined, averaged to that
    stride, so that borders of a pixel or two have something to follow. The paper leaves the decoder open.

    Args:
        shapes: of the backbone's maps; strides are powers of 2.
        channels: of each step, from coarse to fine; as many as the latent's stride has factors 2, so 5 for stride 32.
        norm, gn_groups: see `get_norm`.

    Raises:
        ConfigError: other numbers of channels, fewer than two maps, or maps whose strides are no powers of 2.
    """

    def __init__(
        self, shapes: Mapping[str, ShapeSpec], channels: Sequence[int], norm: str = "BN", gn_groups: int = 32
    ) -> None:
        super().__init__()
        # Of two maps of one stride, as Detectron2's stem and res2, the later one knows more.
        by_stride = {_stride(name, shape): name for name, shape in shapes.items()}
        self.stride = max(by_stride)
        self.latent = by_stride[self.stride]
        steps = self.stride.bit_length() - 1
        if len(by_stride) < 2:
            raise ConfigError(
                f"MODEL.RESNETS.OUT_FEATURES {list(shapes)}: expected the maps that the decoder joins, "
                "as res2, res3, res4, res5"
            )
        if len(channels) != steps or min(channels) < 1:
            raise ConfigError(
                f"MODEL.UNET.CHANNELS {list(channels)}: expected {steps} positive numbers, one a step "
                f"from stride {self.stride} to 1"
            )
        self.skips = [by_stride.get(self.stride >> step) for step in range(1, steps + 1)]
        self.out_channels = channels[-1]
        self.steps = nn.ModuleList()
        width = shapes[self.latent].channels
        for skip, out_channels in zip(self.skips, channels, strict=True):
            joined = shapes[skip].channels if skip else IMAGE_CHANNELS
            self.steps.append(
                nn.Sequential(
                    _convolution((width or 0) + (joined or 0), out_channels, norm, gn_groups),
                    _convolution(out_channels, out_channels, norm, gn_groups),
                )
            )
            width = out_channels

    def forward(self, images: torch.Tensor, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """N x 3 x H x W, H and W multiples of `stride`, and the backbone's maps of them -> N x channels[-1] x H x W."""
        maps = features[self.latent]
        for number, (skip, step) in enumerate(zip(self.skips, self.steps, strict=True), start=1):
            stride = self.stride >> number
            joined = features[skip] if skip else avg_pool2d(images, stride)
            maps = step(torch.cat([interpolate(maps, scale_factor=2.0, mode="nearest"), joined], dim=1))
        return maps


def _stride(name: str, shape: ShapeSpec) -> int:
    stride = shape.stride or 0
    if stride < 1 or stride & (stride - 1):
        raise ConfigError(f"MODEL.BACKBONE: map {name} of stride {stride}; expected a power of 2")
    return stride


def _convolution(in_channels: int, out_channels: int, norm: str, gn_groups: int) -> Conv2d:
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels, gn_groups, "MODEL.UNET.NORM"),
        activation=nn.functional.relu,
    )
    weight_init.c2_msra_fill(layer)
    return layer
