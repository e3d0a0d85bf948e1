"""Whether weights belong to a model's backbone, told in the words of a config.

Published ResNeSts with and without deformable stages share nearly all keys, and other settings leave no trace in the
weights: loading what fits would start from a network that nobody trained, without a word.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from cupre_d2.checkpoint.sources import PLACE, Source

STAGES = ("res2", "res3", "res4", "res5")
BOTTLENECK_DEPTHS: dict[tuple[int, ...], int] = {
    (1, 1, 1, 1): 14,
    (2, 2, 2, 2): 26,
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
    (3, 24, 36, 3): 200,
    (3, 30, 48, 8): 269,
}
BASIC_DEPTHS: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
# Of the offset convolution, channels a group: 9 places of x, y and, if modulated, a mask.
OFFSETS, MODULATED_OFFSETS = 18, 27

PUBLISHED_WIDTH = {"RADIX": 2, "NUM_GROUPS": 1, "channels in and behind a block": (64, 256)}
DEFORMABLE = {"DEFORM_ON_PER_STAGE": [False, True, True, True], "DEFORM_MODULATED": True, "DEFORM_NUM_GROUPS": 2}
PLAIN = {"DEFORM_ON_PER_STAGE": [False, False, False, False]}
SHIPPED: dict[str, dict[str, Any]] = {
    "configs/Base-ResNeSt50-Cascade.yaml": {"DEPTH": 50, **PLAIN, **PUBLISHED_WIDTH},
    "configs/Base-ResNeSt101-Cascade.yaml": {"DEPTH": 101, **PLAIN, **PUBLISHED_WIDTH},
    "configs/Base-ResNeSt200-Cascade.yaml": {"DEPTH": 200, **PLAIN, **PUBLISHED_WIDTH},
    "configs/Base-ResNeSt200-Cascade-DCN.yaml": {"DEPTH": 200, **DEFORMABLE, **PUBLISHED_WIDTH},
}

Shapes = Mapping[str, tuple[int, ...]]
Settings = dict[str, Any]


def misfit(source: Source, model: nn.Module) -> str:
    """Why a source's weights do not belong into a model's backbone, and what to change; "" if they may.

    Stages that one of the two lacks are not compared.
    """
    own = model.state_dict()
    common = _stages(own) & _stages(source.weights)
    if not common:
        return ""
    try:
        found = {**backbone_settings(source.weights, common), **source.arithmetic}
    except (IndexError, ZeroDivisionError):
        return "the backbone has tensors of shapes that no ResNet or ResNeSt has"
    expected = {**backbone_settings(own, common), **_arithmetic(model)}
    differing = [key for key in found if key in expected and found[key] != expected[key]]
    if differing:
        said = "; ".join(f"{_named(key)}: {found[key]} in the file, {expected[key]} in the model" for key in differing)
        fitting = shipped_config(source.weights)
        return f"{said}; {f'the file goes with {fitting}' if fitting else 'set the config as the file has it'}"
    return unbuildable(source)


def unbuildable(source: Source) -> str:
    """Why no config of this plugin builds the network that ImageNet weights are of; "" if one does."""
    settings = backbone_settings(source.weights)
    splits = (settings.get("RADIX"), settings.get("NUM_GROUPS"))
    if "AVD" not in source.arithmetic or splits == (2, 1):
        return ""
    return (
        f"RADIX {splits[0]}, NUM_GROUPS {splits[1]}: published networks of these settings pool before the split attention, "
        "ResNeSt here behind it; expected RADIX 2, NUM_GROUPS 1"
    )


def _named(setting: str) -> str:
    return f"MODEL.RESNETS.{setting}" if setting.isupper() else setting


def shipped_config(weights: Mapping[str, torch.Tensor]) -> str:
    """The config of this repository whose backbone is that of weights with Detectron2's names; "" if there is none."""
    found = backbone_settings(weights)
    return next((file for file, settings in SHIPPED.items() if settings.items() <= found.items()), "")


def backbone_settings(weights: Mapping[str, torch.Tensor], stages: Collection[str] = STAGES) -> Settings:
    """The settings below MODEL.RESNETS of the ResNet or ResNeSt in weights with Detectron2's names, as their shapes tell.

    What no single setting of a config stands for has a name in lower case.

    Args:
        stages: those to look at.
    """
    places = {match[2]: tuple(value.shape) for key, value in weights.items() if (match := PLACE.match(key))}
    shapes = {key: shape for key, shape in places.items() if key.partition(".")[0] in ("stem", *stages)}
    blocks = {stage: _blocks(shapes, stage) for stage in STAGES if _blocks(shapes, stage)}
    if not blocks:
        return {}
    first = f"{next(iter(blocks))}.0"
    return {**_block(shapes, first, tuple(blocks.values())), **_deformable(shapes), **_norm(shapes, first), **_stem(shapes)}


def _stages(keys: Iterable[str]) -> set[str]:
    places = [match[2] for key in keys if (match := PLACE.match(key))]
    return {place.partition(".")[0] for place in places} - {"stem"}


def _blocks(shapes: Shapes, stage: str) -> int:
    return sum(1 for key in shapes if re.fullmatch(rf"{stage}\.\d+\.conv1\.weight", key))


def _block(shapes: Shapes, first: str, blocks: tuple[int, ...]) -> Settings:
    middle = shapes.get(f"{first}.conv2.conv.weight") or shapes.get(f"{first}.conv2.weight")
    last = shapes.get(f"{first}.conv3.weight")
    split = f"{first}.conv2.conv.weight" in shapes
    depths = BOTTLENECK_DEPTHS if last else BASIC_DEPTHS
    inside = shapes[f"{first}.conv1.weight"][0]
    settings: Settings = {"backbone": "ResNeSt" if split else "ResNet"}
    settings["DEPTH"] = depths.get(blocks, f"of {list(blocks)} blocks")
    if middle:
        radix = middle[0] // inside
        settings |= ({"RADIX": radix} if split else {}) | {"NUM_GROUPS": inside // (middle[1] * radix)}
    settings["channels in and behind a block"] = (inside, last[0]) if last else (inside,)
    return settings


def _deformable(shapes: Shapes) -> Settings:
    offsets = {stage: shapes.get(f"{stage}.0.conv2_offset.weight") for stage in STAGES}
    settings: Settings = {"DEFORM_ON_PER_STAGE": [offset is not None for offset in offsets.values()]}
    for stage, offset in offsets.items():
        if offset is None:
            continue
        # ResNeSt's offset convolution is grouped like the offsets themselves, that of Detectron2's ResNet is not.
        groups = shapes[f"{stage}.0.conv1.weight"][0] // offset[1]
        modulated = offset[0] % MODULATED_OFFSETS == 0 and offset[0] != OFFSETS * groups
        width = MODULATED_OFFSETS if modulated else OFFSETS
        return settings | {"DEFORM_MODULATED": modulated, "DEFORM_NUM_GROUPS": offset[0] // width}
    return settings


def _norm(shapes: Shapes, first: str) -> Settings:
    if f"{first}.conv1.norm.running_mean" in shapes:
        return {"NORM": "a batch norm"}
    return {"NORM": "no batch norm" if f"{first}.conv1.norm.weight" in shapes else "none"}


def _stem(shapes: Shapes) -> Settings:
    for name, deep in (("stem.conv1.weight", False), ("stem.conv1_1.weight", True)):
        if name in shapes:
            return {"DEEP_STEM": deep, "channels of the images": shapes[name][1]}
    return {}


def _arithmetic(model: nn.Module) -> dict[str, bool]:
    """The settings that leave no trace in weights, told by the strides of the first block that downsamples."""
    for name, block in model.named_modules():
        place = PLACE.match(name)
        if not place or not re.fullmatch(r"res[3-5]\.0", place[2]):
            continue
        parts = dict(block.named_modules())
        if {"conv2.conv", "shortcut"} <= parts.keys():
            return {"AVD": _strideless(parts["conv2.conv"]), "AVG_DOWN": _strideless(parts["shortcut"])}
        return {"STRIDE_IN_1X1": not _strideless(parts["conv1"])} if "conv3" in parts else {}
    return {}


def _strideless(convolution: Any) -> bool:
    return tuple(convolution.stride) == (1, 1)
