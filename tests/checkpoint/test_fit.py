"""Weights of a network that is not the config's are refused, with the setting to change."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.checkpoint.sources import BOTTLENECK_DEPTHS, SHIPPED, backbone_settings, shipped_config
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import CheckpointError
from cupre_d2.modeling.backbone.resnest import BLOCKS, ResNeSt

Weights = dict[str, torch.Tensor]


def slim_detector(slim: list[str], *opts: Any) -> nn.Module:
    file = "configs/stages/coco_pretrain.yaml"
    return build_model(load_stages(file, [*slim, "MODEL.RESNETS.NORM", "BN", *map(str, opts)])[1][0].cfg)


def saved(weights: Weights, path: Path) -> str:
    torch.save({"model": weights}, path)
    return str(path)


def with_offsets(weights: Weights, groups: int = 2, modulated: bool = True) -> Weights:
    """The weights with deformable res3 to res5: a grouped offset convolution in every block (facts/cupre.md §3.1)."""
    offsets: Weights = {}
    for key, value in weights.items():
        _, stage, name = key.rpartition("res")
        if stage and name[0] in "345" and name.endswith(".conv1.weight"):
            prefix, channels = key.removesuffix("conv1.weight"), (27 if modulated else 18) * groups
            offsets[f"{prefix}conv2_offset.weight"] = torch.zeros(channels, value.shape[0] // groups, 3, 3)
            offsets[f"{prefix}conv2_offset.bias"] = torch.zeros(channels)
    return weights | offsets


def published(depth: int) -> Weights:
    with torch.device("meta"):
        return {f"backbone.bottom_up.{key}": value for key, value in ResNeSt(depth).state_dict().items()}


def refusal(model: nn.Module, weights: Weights, tmp_path: Path) -> str:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_initial_weights(model, saved(weights, tmp_path / "w.pth"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    return message


def test_deformable_weights_into_a_plain_config(slim: list[str], tmp_path: Path) -> None:
    model = slim_detector(slim)
    message = refusal(model, with_offsets(model.state_dict()), tmp_path)
    assert "DEFORM_ON_PER_STAGE: [False, True, True, True] in the file, [False, False, False, False] in the model" in message


def test_plain_weights_into_a_deformable_config(slim: list[str], tmp_path: Path) -> None:
    """The model is a stand-in that has offset convolutions, so that this test needs no deformable stage."""
    plain = slim_detector(slim).state_dict()
    model = Holder(with_offsets(plain))
    message = refusal(model, plain, tmp_path)
    assert "DEFORM_ON_PER_STAGE: [False, False, False, False] in the file, [False, True, True, True] in the model" in message


class Holder(nn.Module):
    """A model that has a state dict and nothing else."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def state_dict(self, *_: Any, **__: Any) -> Weights:
        return dict(self.weights)


@pytest.mark.parametrize(
    ("groups", "modulated", "key"), [(1, True, "DEFORM_NUM_GROUPS: 1"), (2, False, "DEFORM_MODULATED: False")]
)
def test_other_deformable_convolutions(groups: int, modulated: bool, key: str, slim: list[str], tmp_path: Path) -> None:
    plain = slim_detector(slim).state_dict()
    message = refusal(Holder(with_offsets(plain)), with_offsets(plain, groups, modulated), tmp_path)
    assert f"MODEL.RESNETS.{key} in the file" in message


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["MODEL.RESNETS.DEPTH", 26], "MODEL.RESNETS.DEPTH: 14 in the file, 26 in the model"),
        (["MODEL.RESNETS.RADIX", 1], "MODEL.RESNETS.RADIX: 2 in the file, 1 in the model"),
        (["MODEL.RESNETS.NUM_GROUPS", 2], "MODEL.RESNETS.NUM_GROUPS: 1 in the file, 2 in the model"),
        (["MODEL.RESNETS.NORM", "GN"], "MODEL.RESNETS.NORM: a batch norm in the file, no batch norm in the model"),
        (["MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25], "channels in and behind a block: (8, 32) in the file, (16, 64)"),
        (["MODEL.RESNETS.DEEP_STEM", False], "MODEL.RESNETS.DEEP_STEM: True in the file, False in the model"),
        (
            ["MODEL.FPN.OUT_CHANNELS", 64],
            "the backbone or its neck has other shapes than in the model: backbone.fpn_lateral2",
        ),
        (["MODEL.FPN.NORM", ""], "trained with another norm than the model's: backbone.fpn_lateral2, "),
    ],
)
def test_other_networks(opts: list[Any], expected: str, slim: list[str], tmp_path: Path) -> None:
    assert expected in refusal(slim_detector(slim, *opts), slim_detector(slim).state_dict(), tmp_path)


def test_a_resnet_is_no_resnest(slim: list[str], tmp_path: Path) -> None:
    model = slim_detector(slim)
    resnet = {key.replace("conv2.conv.weight", "conv2.weight"): value for key, value in model.state_dict().items()}
    assert "backbone: ResNet in the file, ResNeSt in the model" in refusal(model, resnet, tmp_path)


def test_images_of_other_channels(slim: list[str], tmp_path: Path) -> None:
    model = slim_detector(slim)
    key = "backbone.bottom_up.stem.conv1_1.weight"
    grey = model.state_dict() | {key: model.state_dict()[key][:, :1]}
    assert "channels of the images: 1 in the file, 3 in the model" in refusal(model, grey, tmp_path)


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(0), torch.zeros(1, 1), torch.zeros(2, 0, 0, 0)])
def test_shapes_that_no_network_has(value: torch.Tensor, slim: list[str], tmp_path: Path) -> None:
    model = slim_detector(slim)
    for name in ("conv1.weight", "conv2.conv.weight", "conv3.weight"):
        key = f"backbone.bottom_up.res2.0.{name}"
        reason = refusal(model, model.state_dict() | {key: value}, tmp_path)
        assert any(part in reason for part in ("no ResNet or ResNeSt has", f"{key} {tuple(value.shape)}", "behind a block"))


def test_other_classes_anchors_constants_and_counters_go_on(slim: list[str], tmp_path: Path) -> None:
    """COCO's weights in LIVECell's detector (facts/cupre.md §3.3): listed, and the rest loads."""
    coco = slim_detector(slim)
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.25, 0.5, 1.0, 2.0, 4.0]]"]
    cells = slim_detector(slim, *opts)
    weights = {key: torch.rand(value.shape).to(value.dtype) for key, value in coco.state_dict().items()}
    # Older Detectron2s saved what the config says, and had frozen norms without a counter.
    counter = "backbone.bottom_up.res2.0.conv2.bn0.num_batches_tracked"
    del weights[counter]
    anchors = "proposal_generator.anchor_generator.cell_anchors.0"
    weights |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.zeros(3, 1, 1), anchors: torch.zeros(3, 4)}
    report = load_initial_weights(cells, saved(weights, tmp_path / "w.pth"))
    boxes = [f"roi_heads.box_predictor.{number}.cls_score" for number in range(3)]
    rpn = [f"proposal_generator.rpn_head.{name}" for name in ("objectness_logits", "anchor_deltas")]
    other = [f"{layer}.{name}" for layer in [*rpn, *boxes, "roi_heads.mask_head.predictor"] for name in ("weight", "bias")]
    assert sorted(key for key, _, _ in report.mismatched) == sorted(other)
    assert not report.missing and not report.unexpected
    assert set(report.left_out) == {"pixel_mean", "pixel_std", anchors, counter}
    state = cells.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in report.matched)


def test_stages_that_one_of_the_two_lacks_are_not_compared(tmp_path: Path) -> None:
    whole = ResNeSt(14, width_multiplier=0.125)
    part = ResNeSt(14, width_multiplier=0.125, out_features=["res3"])
    report = load_initial_weights(part, saved(whole.state_dict(), tmp_path / "w.pth"))
    assert not report.missing
    assert all(key.startswith(("res4.", "res5.")) for key in report.unexpected)


def test_settings_of_the_published_deformable_resnest_200() -> None:
    settings = backbone_settings(with_offsets(published(200)))
    assert settings["DEPTH"] == 200
    assert settings["DEFORM_ON_PER_STAGE"] == [False, True, True, True]
    assert (settings["DEFORM_MODULATED"], settings["DEFORM_NUM_GROUPS"]) == (True, 2)
    assert (settings["RADIX"], settings["NUM_GROUPS"], settings["DEEP_STEM"]) == (2, 1, True)


def test_the_shipped_config_that_fits() -> None:
    assert shipped_config(published(50)) == "configs/Base-ResNeSt50-Cascade.yaml"
    assert shipped_config(published(101)) == "configs/Base-ResNeSt101-Cascade.yaml"
    assert shipped_config(published(200)) == "configs/Base-ResNeSt200-Cascade.yaml"
    assert shipped_config(with_offsets(published(200))) == "configs/Base-ResNeSt200-Cascade-DCN.yaml"
    assert shipped_config(published(269)) == ""
    assert shipped_config({}) == ""


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_configs_have_the_settings_they_are_named_for(file: str) -> None:
    resnets: CfgNode = load_stages(file)[1][0].cfg.MODEL.RESNETS
    for key, value in SHIPPED[file].items():
        if key.isupper():
            assert resnets[key] == value, key


def test_the_message_names_the_shipped_config(tmp_path: Path) -> None:
    weights = {key: torch.zeros(value.shape) for key, value in published(50).items()}
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": ResNeSt(14)})})
    assert "the file goes with configs/Base-ResNeSt50-Cascade.yaml" in refusal(model, weights, tmp_path)


def test_depths_are_the_backbones() -> None:
    assert {depth: blocks for blocks, depth in BOTTLENECK_DEPTHS.items() if depth in BLOCKS} == BLOCKS
