"""ResNeSt (Zhang et al. 2020, https://arxiv.org/abs/2004.08955) as a Detectron2 backbone.

The parameter names are detectron2-ResNeSt's, so published checkpoints load key for key: `stem.conv1_{1,2,3}`,
`res{2..5}.{i}.{conv1,conv2,conv3,shortcut}`. Unlike there, all norms of Detectron2 can be named, the depths 14 and 26
exist, RADIX switches no other key, and WIDTH_MULTIPLIER slims the network. Deformable stages have
`res{3..5}.{i}.conv2_offset` and run on a CPU too.

Feature maps and weights lie in memory channels last, which oneDNN and cuDNN convolve fastest; shapes, and what a
checkpoint holds, are the same as ever.
"""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.layers import ConvNorm, get_norm, recomputed
from cupre_d2.modeling.splat import SplitAttention, build_offset_conv, split_deformation

BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
STEM_WIDTHS = {14: 32, 26: 32, 50: 32}
DEFAULT_STEM_WIDTH = 64
SHALLOW_STEM_WIDTH = 64
STAGES = ("res2", "res3", "res4", "res5")

Norm = Callable[[int], nn.Module | None]


class DeepStem(CNNBlockBase):
    """Three 3x3 convolutions and a 3x3 max pooling: N x 3 x H x W -> N x 2·width x H/4 x W/4, rounded up.

    Args:
        width: channels of the first two convolutions.
        norm: makes a layer from a number of channels.
    """

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__(3, 2 * width, 4)
        self.conv1_1 = ConvNorm(3, width, kernel_size=3, stride=2, padding=1, bias=False, norm=norm(width))
        self.conv1_2 = ConvNorm(width, width, kernel_size=3, padding=1, bias=False, norm=norm(width))
        self.conv1_3 = ConvNorm(width, 2 * width, kernel_size=3, padding=1, bias=False, norm=norm(2 * width))
        for conv in (self.conv1_1, self.conv1_2, self.conv1_3):
            weight_init.c2_msra_fill(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1_1, self.conv1_2, self.conv1_3):
            x = torch.relu_(conv(x))
        return nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Bottleneck(CNNBlockBase):
    """1x1 convolution, split attention, 1x1 convolution, and a shortcut.

    A stride lies on the average pooling behind the split attention (`avd`), else on its 3x3 convolution; Detectron2's
    STRIDE_IN_1X1 is not read, as every published ResNeSt strides behind or in the 3x3.

    Args:
        group_width: channels inside the bottleneck, all cardinal groups together.
        avg_down: average pooling before the shortcut's 1x1 convolution in place of its stride.
        deform_groups: groups of channels that share the offsets of a deformable 3x3 convolution; 0 for a plain one.
        deform_modulated: the deformable convolution weighs its samples, too.
        checkpoint: keep no activations inside the block; see `recomputed`.
        norm, gn_groups: see `get_norm`.
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
        deform_groups: int = 0,
        deform_modulated: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.deform_groups = deform_groups
        self.checkpoint = checkpoint
        make_norm = partial(get_norm, norm, gn_groups=gn_groups)
        self.conv1 = ConvNorm(in_channels, group_width, kernel_size=1, bias=False, norm=make_norm(group_width))
        pools = avd and stride > 1
        stride_3x3 = 1 if pools else stride
        if deform_groups:
            self.conv2_offset = build_offset_conv(
                group_width, stride=stride_3x3, groups=deform_groups, modulated=deform_modulated
            )
        self.conv2 = SplitAttention(
            group_width,
            stride=stride_3x3,
            groups=groups,
            radix=radix,
            deformable=deform_groups > 0,
            norm=norm,
            gn_groups=gn_groups,
        )
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if pools else nn.Identity()
        self.conv3 = ConvNorm(group_width, out_channels, kernel_size=1, bias=False, norm=make_norm(out_channels))
        layers = [self.conv1, self.conv3]
        self.shortcut: ConvNorm | None = None
        if in_channels != out_channels:
            self.shortcut_avgpool = (
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
                if avg_down and stride > 1
                else nn.Identity()
            )
            self.shortcut = ConvNorm(
                in_channels,
                out_channels,
                kernel_size=1,
                stride=1 if avg_down else stride,
                bias=False,
                norm=make_norm(out_channels),
            )
            layers.append(self.shortcut)
        for layer in layers:
            weight_init.c2_msra_fill(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return recomputed(self, self._forward, x) if self.checkpoint else self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu_(self.conv1(x))
        deformation = split_deformation(self.conv2_offset(out), self.deform_groups) if self.deform_groups else ()
        out = self.conv3(self.avd_layer(self.conv2(out, *deformation)))
        shortcut = x if self.shortcut is None else self.shortcut(self.shortcut_avgpool(x))
        return torch.relu_(out.add_(shortcut))


class ResNeSt(ResNet):
    """Maps N x 3 x H x W images to {"res2": stride 4, "res3": 8, "res4": 16, "res5": 32} for the features asked for.

    Sizes that the stride does not divide are rounded up. Stages beyond the deepest feature asked for are not built.

    Args:
        depth: 14, 26, 50, 101, 200 or 269.
        radix: splits of the split attention.
        groups: cardinality.
        width_per_group: width of a cardinal group in res2; doubles each stage.
        bottleneck_width: a group's channels in the bottleneck are `width * bottleneck_width / 64`, rounded down, as the
            paper counts them: 2 groups of width 40 have 80 channels in res2.
        res2_out_channels: doubles each stage.
        deep_stem: three 3x3 convolutions in place of one 7x7; their width follows the depth, as published.
        avd, avg_down: see `Bottleneck`.
        width_multiplier: above 0; multiplies every number of channels, the stem's too.
        deform_on_per_stage: for res2 to res5, whether their 3x3 convolutions are deformable.
        deform_modulated, deform_num_groups: see `Bottleneck`.
        norm, gn_groups: see `get_norm`.
        out_features: from "stem", "res2", …, "res5".
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, and so on; frozen batch norms become FrozenBN.
        checkpoint_stages: from "res2", …, "res5": stages that keep their blocks' inputs alone for the backward pass and
            compute the rest again, for less memory in about a third more time.

    Raises:
        ConfigError: an unknown depth, feature, stage or norm, or channels that cannot be split.
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
        deform_on_per_stage: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        norm: str = "BN",
        gn_groups: int = 32,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        checkpoint_stages: Sequence[str] = (),
    ) -> None:
        if depth not in BLOCKS:
            raise ConfigError(f"MODEL.RESNETS.DEPTH {depth}: expected one of {', '.join(map(str, BLOCKS))}")
        unknown = [name for name in out_features if name not in ("stem", *STAGES)]
        if unknown or not out_features:
            raise ConfigError(f"MODEL.RESNETS.OUT_FEATURES {list(out_features)}: expected some of stem, {', '.join(STAGES)}")
        if len(deform_on_per_stage) != len(STAGES):
            raise ConfigError(
                f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {list(deform_on_per_stage)}: expected {len(STAGES)} values, "
                f"{STAGES[0]} to {STAGES[-1]}"
            )
        if unknown := [name for name in checkpoint_stages if name not in STAGES]:
            raise ConfigError(f"MODEL.RESNETS.CHECKPOINT_STAGES {unknown}: expected some of {', '.join(STAGES)}")

        def scaled(channels: int) -> int:
            return round(channels * width_multiplier)

        if scaled(min(STEM_WIDTHS[14], width_per_group)) < 1:
            raise ConfigError(f"MODEL.RESNETS.WIDTH_MULTIPLIER {width_multiplier}: leaves a layer without channels")

        make_norm = partial(get_norm, norm, gn_groups=gn_groups)
        stem: CNNBlockBase = (
            DeepStem(scaled(STEM_WIDTHS.get(depth, DEFAULT_STEM_WIDTH)), make_norm)
            if deep_stem
            else BasicStem(3, scaled(SHALLOW_STEM_WIDTH), norm=make_norm)
        )
        in_channels = stem.out_channels
        stages = []
        for index, num_blocks in enumerate(BLOCKS[depth]):
            out_channels = scaled(res2_out_channels * 2**index)
            group_width = int(scaled(width_per_group * 2**index) * bottleneck_width / 64) * groups
            deform_groups = deform_num_groups if deform_on_per_stage[index] else 0
            if deform_on_per_stage[index] and (deform_groups < 1 or group_width % deform_groups):
                raise ConfigError(
                    f"MODEL.RESNETS.DEFORM_NUM_GROUPS {deform_num_groups}: expected a divisor of the {group_width} channels "
                    f"of {STAGES[index]}"
                )
            stages.append(
                ResNet.make_stage(
                    Bottleneck,
                    num_blocks,
                    in_channels=in_channels,
                    out_channels=out_channels,
                    group_width=group_width,
                    stride_per_block=[2 if index > 0 else 1] + [1] * (num_blocks - 1),
                    groups=groups,
                    radix=radix,
                    avd=avd,
                    avg_down=avg_down,
                    norm=norm,
                    gn_groups=gn_groups,
                    deform_groups=deform_groups,
                    deform_modulated=deform_modulated,
                    checkpoint=STAGES[index] in checkpoint_stages,
                )
            )
            in_channels = out_channels
        super().__init__(stem, stages, out_features=list(out_features), freeze_at=freeze_at)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


@BACKBONE_REGISTRY.register()
def build_resnest_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeSt:
    """ResNeSt from MODEL.RESNETS and MODEL.BACKBONE.FREEZE_AT.

    Raises:
        ConfigError: a setting that no ResNeSt here has.
    """
    resnets = cfg.MODEL.RESNETS
    if input_shape.channels != 3:
        raise ConfigError(f"MODEL.PIXEL_MEAN: {input_shape.channels} channels; ResNeSt's stem takes 3")
    if resnets.RES5_DILATION != 1:
        raise ConfigError(f"MODEL.RESNETS.RES5_DILATION {resnets.RES5_DILATION}: expected 1")
    # Its other arguments have the keys' names.
    named = {key.lower(): value for key, value in resnets.items() if key.lower() in signature(ResNeSt).parameters}
    return ResNeSt(**named, groups=resnets.NUM_GROUPS, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNeSt with Detectron2's feature pyramid, p2 to p6.

    Raises:
        ConfigError: as `build_resnest_backbone`, and maps for the pyramid that there are none of.
    """
    bottom_up = build_resnest_backbone(cfg, input_shape)
    wanted, found = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.RESNETS.OUT_FEATURES
    if not wanted or not set(wanted) <= set(found):
        # Detectron2's defaults are those of its networks without a pyramid, for the heads as well.
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {list(wanted)}: expected some of MODEL.RESNETS.OUT_FEATURES {list(found)}; "
            "configs/Base-ResNeSt50-Cascade.yaml is a config to start from, which sets these and the heads'"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=wanted,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        # Detectron2 tells by "" alone that the convolutions need a bias.
        norm=cfg.MODEL.FPN.NORM and partial(get_norm, cfg.MODEL.FPN.NORM, key="MODEL.FPN.NORM"),
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
