"""Where published weights come from, told by their keys, and Detectron2's names for them.

Four families of names are known; within each, ResNets and ResNeSts:

- Detectron2's, whole models: `backbone.bottom_up.res2.0.conv1.weight`. Detectron2's and detectron2-ResNeSt's detectors,
  every stage of this plugin.
- Detectron2's, backbones alone: `res2.0.conv1.weight`.
- torchvision's, which zhanghang1989's `resnest` and timm share: `layer1.0.conv1.weight`.
- MoCo's: torchvision's below `encoder_q.`, beside the key encoder and the queue.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

Weights = Mapping[str, torch.Tensor]

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
        return _from_backbone(weights, model_keys)
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


def _from_backbone(weights: Weights, model_keys: Iterable[str]) -> Source:
    kept = {key: value for key, value in weights.items() if not CLASSIFIER.match(key)}
    left_out = [key for key in weights if CLASSIFIER.match(key)]
    return Source("backbone with Detectron2's names", _placed(kept, model_keys), left_out)


def _placed(weights: Weights, model_keys: Iterable[str]) -> Weights:
    places = {match[2]: key for key in model_keys if (match := PLACE.match(key))}
    default = DETECTOR_PREFIX if not places else next(iter(places.values())).partition(next(iter(places)))[0]
    return {places.get(key, default + key): value for key, value in weights.items()}
