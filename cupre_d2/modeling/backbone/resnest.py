"""ResNeSt (Zhang et al. 2020) as a Detectron2 backbone, with the parameter names of detectron2-ResNeSt.

Published checkpoints load key for key: `stem.conv1_{1,2,3}`, `res{2..5}.{i}.{conv1,conv2,conv3,shortcut}`. Unlike there,
all norms of Detectron2 can be named, the depths 14 and 26 exist, and `WIDTH_MULTIPLIER` slims the network.
"""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.norms import get_norm
from cupre_d2.modeling.splat import SplitAttention

BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
SMALL_STEM_DEPTHS = (14, 26, 50)
STAGES = ("res2", "res3", "res4", "res5")


class Stem(CNNBlockBase):
    """The first layers, stride 4: three 3x3 convolutions (deep) or one 7x7, then a 3x3 max pooling.

    Args:
        width: channels of the first two convolutions of a deep stem; it gives twice as many, a shallow one 64/32 of it.
    """

    def __init__(self, width: int, deep: bool, norm: str, gn_groups: int) -> None:
        super().__init__(3, 2 * width, 4)
        self.deep = deep
        if deep:
            shapes = [(3, width, 2), (width, width, 1), (width, 2 * width, 1)]
            for number, (into, out, stride) in enumerate(shapes, start=1):
                conv = Conv2d(into, out, kernel_size=3, stride=stride, padding=1, bias=False, norm=get_norm(norm, out, gn_groups))
                weight_init.c2_msra_fill(conv)
                self.add_module(f"conv1_{number}", conv)
        else:
            out = 2 * width
            self.conv1 = Conv2d(3, out, kernel_size=7, stride=2, padding=3, bias=False, norm=get_norm(norm, out, gn_groups))
            weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolutions = (self.conv1_1, self.conv1_2, self.conv1_3) if self.deep else (self.conv1,)
        for conv in convolutions:
            x = torch.relu(conv(x))
        return nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Bottleneck(CNNBlockBase):
    """1x1 convolution, split attention, 1x1 convolution, and a shortcut.

    A stride lies on the average pooling behind the split attention (`avd`), else on its 3x3 convolution; Detectron2's
    STRIDE_IN_1X1 is not read, as no published ResNeSt strides in a 1x1 convolution.

    Args:
        group_width: channels inside the bottleneck, all cardinal groups together.
        avg_down: average pooling before the shortcut's 1x1 convolution in place of its stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group_width: int,
        *,
        stride: int,
        groups: int,
        radix: int,
        avd: bool,
        avg_down: bool,
        norm: str,
        gn_groups: int,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.conv1 = Conv2d(
            in_channels, group_width, kernel_size=1, bias=False, norm=get_norm(norm, group_width, gn_groups)
        )
        pools = avd and stride > 1
        self.conv2 = SplitAttention(
            group_width, stride=1 if pools else stride, groups=groups, radix=radix, norm=norm, gn_groups=gn_groups
        )
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if pools else nn.Identity()
        self.conv3 = Conv2d(
            group_width, out_channels, kernel_size=1, bias=False, norm=get_norm(norm, out_channels, gn_groups)
        )
        layers = [self.conv1, self.conv3]
        self.shortcut: Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut_avgpool = (
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
                if avg_down and stride > 1
                else nn.Identity()
            )
            self.shortcut = Conv2d(
                in_channels,
                out_channels,
                kernel_size=1,
                stride=1 if avg_down else stride,
                bias=False,
                norm=get_norm(norm, out_channels, gn_groups),
            )
            layers.append(self.shortcut)
        for layer in layers:
            weight_init.c2_msra_fill(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.conv1(x))
        out = self.conv3(self.avd_layer(self.conv2(out)))
        shortcut = x if self.shortcut is None else self.shortcut(self.shortcut_avgpool(x))
        return torch.relu(out + shortcut)


class ResNeSt(Backbone):
    """Maps N x 3 x H x W images to {"res2": stride 4, "res3": 8, "res4": 16, "res5": 32} for the features asked for.

    Args:
        depth: 14, 26, 50, 101, 200 or 269.
        radix: splits of the split attention.
        groups: cardinality.
        width_per_group: width of a cardinal group in res2; doubles each stage.
        bottleneck_width: the bottleneck's channels are `width * bottleneck_width / 64`, for each group.
        res2_out_channels: doubles each stage.
        deep_stem, avd, avg_down: see `Stem` and `Bottleneck`.
        width_multiplier: multiplies every number of channels.
        norm, gn_groups: see `get_norm`.
        out_features: from "stem", "res2", …, "res5".
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, and so on; frozen batch norms become FrozenBN.

    Raises:
        ConfigError: an unknown depth or feature.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        radix: int = 2,
        groups: int = 1,
        width_per_group: int = 64,
        bottleneck_width: int = 64,
        res2_out_channels: int = 256,
        deep_stem: bool = True,
        avd: bool = True,
        avg_down: bool = True,
        width_multiplier: float = 1.0,
        norm: str = "BN",
        gn_groups: int = 32,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ConfigError(f"MODEL.RESNETS.DEPTH {depth}: expected one of {', '.join(map(str, BLOCKS))}")
        unknown = [name for name in out_features if name not in ("stem", *STAGES)]
        if unknown or not out_features:
            raise ConfigError(f"MODEL.RESNETS.OUT_FEATURES {list(out_features)}: expected some of stem, {', '.join(STAGES)}")
        stem_width = 32 if depth in SMALL_STEM_DEPTHS or not deep_stem else 64
        self.stem = Stem(round(stem_width * width_multiplier), deep_stem, norm, gn_groups)
        self._out_features = list(out_features)
        self._out_feature_channels = {"stem": self.stem.out_channels}
        self._out_feature_strides = {"stem": 4}

        deepest = max([STAGES.index(name) + 1 for name in out_features if name != "stem"], default=0)
        self.stage_names = STAGES[:deepest]
        in_channels = self.stem.out_channels
        for index, name in enumerate(self.stage_names):
            out_channels = round(res2_out_channels * 2**index * width_multiplier)
            width = round(width_per_group * 2**index * width_multiplier)
            blocks: list[nn.Module] = []
            for number in range(BLOCKS[depth][index]):
                blocks.append(
                    Bottleneck(
                        in_channels,
                        out_channels,
                        int(width * bottleneck_width / 64) * groups,
                        stride=2 if number == 0 and index > 0 else 1,
                        groups=groups,
                        radix=radix,
                        avd=avd,
                        avg_down=avg_down,
                        norm=norm,
                        gn_groups=gn_groups,
                    )
                )
                in_channels = out_channels
            self.add_module(name, nn.Sequential(*blocks))
            self._out_feature_channels[name] = out_channels
            self._out_feature_strides[name] = 4 * 2**index
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            features["stem"] = x
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self._out_features:
                features[name] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    def freeze(self, freeze_at: int) -> None:
        """Freezes the stem from 1 on, res2 from 2 on, and so on, as Detectron2's ResNet does."""
        if freeze_at >= 1:
            self.stem.freeze()
        for level, name in enumerate(self.stage_names, start=2):
            if freeze_at >= level:
                for block in getattr(self, name):
                    block.freeze()


@BACKBONE_REGISTRY.register()
def build_resnest_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeSt:
    """ResNeSt from MODEL.RESNETS and MODEL.BACKBONE.FREEZE_AT.

    Raises:
        ConfigError: a setting that no ResNeSt here has.
    """
    resnets = cfg.MODEL.RESNETS
    if input_shape.channels != 3:
        raise ConfigError(f"MODEL.PIXEL_MEAN: {input_shape.channels} channels; ResNeSt's stem takes 3")
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise ConfigError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable stages are not supported yet; expected all False")
    if resnets.RES5_DILATION != 1:
        raise ConfigError(f"MODEL.RESNETS.RES5_DILATION {resnets.RES5_DILATION}: expected 1")
    return ResNeSt(
        resnets.DEPTH,
        radix=resnets.RADIX,
        groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        bottleneck_width=resnets.BOTTLENECK_WIDTH,
        res2_out_channels=resnets.RES2_OUT_CHANNELS,
        deep_stem=resnets.DEEP_STEM,
        avd=resnets.AVD,
        avg_down=resnets.AVG_DOWN,
        width_multiplier=resnets.WIDTH_MULTIPLIER,
        norm=resnets.NORM,
        gn_groups=resnets.GN_GROUPS,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNeSt with Detectron2's feature pyramid, p2 to p6."""
    return FPN(
        bottom_up=build_resnest_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
