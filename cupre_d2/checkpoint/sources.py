"""Where published weights come from, told by their keys, Detectron2's names for them, and whether they belong to a model.

Four families of names are known; within each, ResNets and ResNeSts:

- Detectron2's, whole models: `backbone.bottom_up.res2.0.conv1.weight`. Detectron2's and detectron2-ResNeSt's detectors,
  every stage of this plugin.
- Detectron2's, backbones alone: `res2.0.conv1.weight`.
- torchvision's, which zhanghang1989's `resnest` and timm share: `layer1.0.conv1.weight`.
- MoCo's: torchvision's below `encoder_q.`, beside the key encoder and the queue.

Whether they belong to a model's backbone is told in the words of a config: published ResNeSts with and without deformable
stages share nearly all keys, and other settings leave no trace in the weights: loading what fits would start from a network
that nobody trained, without a word.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Weights = Mapping[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Settings = dict[str, Any]

DETECTOR_PREFIX = "backbone.bottom_up."
DETECTOR_PARTS = ("backbone.", "proposal_generator.", "roi_heads.")
QUERY_ENCODER = "encoder_q."
# A backbone's own names, and the places that they have in Detectron2's models: with FPN, without, and ROI heads on res5.
PLACE = re.compile(r"^(backbone\.(?:bottom_up\.)?|roi_heads\.)?((?:stem|res[2-5])\..+)$")
CLASSIFIER = re.compile(r"^(stem\.)?(fc|linear)(\.\d+)?\.(weight|bias)$")
SPLIT_ATTENTION = re.compile(r"^layer\d\.\d+\.conv2\.fc1\.weight$")
BLOCK = re.compile(r"^layer(\d)\.(\d+)\.(.+)$")
DOWNSAMPLE = re.compile(r"^downsample\.\d+\.(.+)$")

RGB_STATISTICS = "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]"

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


@dataclass(frozen=True)
class Source:
    """Weights under Detectron2's names.

    Attributes:
        kind: for people; "" for names that no family has, which stay as they are.
        weights: as far as a detector has a use for them.
        left_out: the keys of the file that it has none for: classifier, key encoder, queue.
        arithmetic: settings below MODEL.RESNETS that the weights were trained with and that leave no trace in them.
        pixels: settings that the images were read with, "" where the file's kind does not tell.
    """

    kind: str
    weights: Weights
    left_out: list[str] = field(default_factory=list)
    arithmetic: dict[str, bool] = field(default_factory=dict)
    pixels: str = ""


def identify(weights: Weights, model_keys: Iterable[str] = ()) -> Source:
    """Tells the kind of a state dict by its keys and gives its weights Detectron2's names.

    ResNeSts of the publishers' ablation study pool before the split attention (`avd_first`), which this plugin's do not.
    Those of several cardinal groups or another radix than 2 are marked by it; resnest_fast_2s1x64d has the very keys and
    shapes of ResNeSt-50 and cannot be told apart.

    Args:
        weights: without a "module." before every key.
        model_keys: a backbone's weights take the places that they have among them; by default, `backbone.bottom_up.`.
    """
    if any(key.startswith(QUERY_ENCODER) for key in weights):
        return _from_moco(weights, model_keys)
    if "layer1.0.conv1.weight" in weights:
        return _from_torchvision(weights, model_keys)
    if any((match := PLACE.match(key)) and not match[1] for key in weights):
        kept = {key: value for key, value in weights.items() if not CLASSIFIER.match(key)}
        left_out = [key for key in weights if CLASSIFIER.match(key)]
        return Source("backbone with Detectron2's names", _placed(kept, model_keys), left_out)
    detector = any(key.startswith(DETECTOR_PARTS) for key in weights)
    return Source("detector with Detectron2's names" if detector else "", weights)


def _from_moco(weights: Weights, model_keys: Iterable[str]) -> Source:
    query = {key.removeprefix(QUERY_ENCODER): value for key, value in weights.items() if key.startswith(QUERY_ENCODER)}
    encoder = identify(query, model_keys)
    others = [key for key in weights if not key.startswith(QUERY_ENCODER)]
    return Source(
        f"MoCo checkpoint, query encoder: {encoder.kind}",
        encoder.weights,
        [QUERY_ENCODER + key for key in encoder.left_out] + others,
        encoder.arithmetic,
        encoder.pixels,
    )


def _from_torchvision(weights: Weights, model_keys: Iterable[str]) -> Source:
    kept = {_detectron2_name(key, weights): value for key, value in weights.items() if not CLASSIFIER.match(key)}
    split_attention = any(SPLIT_ATTENTION.match(key) for key in weights)
    return Source(
        "ResNeSt of resnest or timm" if split_attention else "torchvision's ResNet",
        _placed(kept, model_keys),
        [key for key in weights if CLASSIFIER.match(key)],
        {"AVD": True, "AVG_DOWN": True} if split_attention else {"STRIDE_IN_1X1": False},
        RGB_STATISTICS,
    )


def _detectron2_name(key: str, weights: Weights) -> str:
    block = BLOCK.match(key)
    if not block:
        return _stem_name(key, deep="conv1.0.weight" in weights)
    layer, number, rest = block.groups()
    # The index before it depends on whether a pooling layer comes first; the convolution's weight is the one of 4 axes.
    if downsample := DOWNSAMPLE.match(rest):
        rest = "shortcut.weight" if weights[key].dim() == 4 else f"shortcut.norm.{downsample[1]}"
    rest = re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)
    return f"res{int(layer) + 1}.{number}.{rest}"


def _stem_name(key: str, deep: bool) -> str:
    if norm := re.match(r"^bn1\.(.+)$", key):
        return f"stem.conv1_3.norm.{norm[1]}" if deep else f"stem.conv1.norm.{norm[1]}"
    # A deep stem is three times convolution, norm, ReLU, of which the last norm is bn1.
    if layer := re.match(r"^conv1\.(\d+)\.(.+)$", key):
        convolution, is_norm = divmod(int(layer[1]), 3)
        return f"stem.conv1_{convolution + 1}.{'norm.' if is_norm else ''}{layer[2]}"
    return f"stem.{key}" if key.startswith("conv1.") else key


def _placed(weights: Weights, model_keys: Iterable[str]) -> Weights:
    places = {match[2]: key for key in model_keys if (match := PLACE.match(key))}
    default = DETECTOR_PREFIX if not places else next(iter(places.values())).partition(next(iter(places)))[0]
    return {places.get(key, default + key): value for key, value in weights.items()}


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
        names = {key: f"MODEL.RESNETS.{key}" if key.isupper() else key for key in differing}
        said = "; ".join(f"{name}: {found[key]} in the file, {expected[key]} in the model" for key, name in names.items())
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
    settings = {**_block(shapes, first, tuple(blocks.values())), **_deformable(shapes)}
    norm = "no batch norm" if f"{first}.conv1.norm.weight" in shapes else "none"
    settings["NORM"] = "a batch norm" if f"{first}.conv1.norm.running_mean" in shapes else norm
    for name, deep in (("stem.conv1.weight", False), ("stem.conv1_1.weight", True)):
        if name in shapes:
            settings |= {"DEEP_STEM": deep, "channels of the images": shapes[name][1]}
    return settings


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
