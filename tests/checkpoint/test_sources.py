"""Weights of other projects' models compute here what they compute there."""

from pathlib import Path
from typing import Any

import pytest
import resnest.torch
import timm
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone, build_model
from torch import nn

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.checkpoint.sources import identify
from cupre_d2.config import add_cupre_config
from cupre_d2.errors import CheckpointError
from cupre_d2.modeling.backbone.resnest import ResNeSt

LAYERS = ("layer1", "layer2", "layer3", "layer4")
STAGES = ("res2", "res3", "res4", "res5")


def randomised(model: nn.Module) -> nn.Module:
    """In evaluation mode, with norms that are not the identity, as trained ones are not."""
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if "running" in key or (value.dim() == 1 and "fc" not in key):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
    return model.eval()


def their_features(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    act = getattr(model, "relu", None) or model.act1
    x = model.maxpool(act(model.bn1(model.conv1(images))))
    features = {}
    for layer, stage in zip(LAYERS, STAGES, strict=True):
        features[stage] = x = getattr(model, layer)(x)
    return features


def assert_same_features(theirs: nn.Module, ours: nn.Module) -> None:
    """The bars of issue 4: relative to the largest value of a feature, 1e-4."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = their_features(theirs, images), ours.eval()(images)
    for stage in STAGES:
        assert (found[stage] - expected[stage]).abs().max() <= 1e-4 * expected[stage].abs().max(), stage


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return randomised(torchvision.models.resnet50())


def resnet_cfg(name: str = "build_resnet_fpn_backbone", depth: int = 50) -> CfgNode:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    return cfg


PUBLISHED_RESNESTS = {
    "resnest 50": (lambda: resnest.torch.resnest50(), 50),
    "resnest 101": (lambda: resnest.torch.resnest101(), 101),
    "timm 14": (lambda: timm.create_model("resnest14d"), 14),
    "timm 26": (lambda: timm.create_model("resnest26d"), 26),
    "timm 50": (lambda: timm.create_model("resnest50d"), 50),
}


@pytest.mark.parametrize("name", PUBLISHED_RESNESTS)
def test_imagenet_resnest(name: str, tmp_path: Path) -> None:
    build, depth = PUBLISHED_RESNESTS[name]
    theirs, ours = randomised(build()), ResNeSt(depth)
    report = load_initial_weights(ours, saved(theirs.state_dict(), tmp_path / "w.pth"))
    assert report.kind == "ResNeSt of resnest or timm"
    assert set(report.matched) == set(ours.state_dict())
    assert report.left_out == ["fc.weight", "fc.bias"]
    assert not report.missing and not report.unexpected and not report.mismatched
    assert_same_features(theirs, ours)
    classifier = sum(parameter.numel() for parameter in theirs.fc.parameters())
    total = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == total - classifier


@pytest.mark.parametrize(
    ("build", "depth"),
    [(resnest.torch.resnest200, 200), (resnest.torch.resnest269, 269), (lambda: timm.create_model("resnest200e"), 200)],
)
def test_every_key_and_shape_of_the_deep_ones(build, depth: int) -> None:  # noqa: ANN001
    with torch.device("meta"):
        theirs, ours = build().state_dict(), ResNeSt(depth).state_dict()
    found = identify(theirs, ours).weights
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in ours.items()}


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("builder", ["build_resnet_backbone", "build_resnet_fpn_backbone"])
def test_torchvision_resnet(depth: int, builder: str, resnet50: nn.Module, tmp_path: Path) -> None:
    theirs = resnet50 if depth == 50 else randomised(torchvision.models.resnet18())
    backbone = nn.ModuleDict({"backbone": build_backbone(resnet_cfg(builder, depth))})
    report = load_initial_weights(backbone, saved(theirs.state_dict(), tmp_path / "w.pth"))
    assert report.kind == "torchvision's ResNet"
    assert all("fpn" in key for key in report.missing) and not report.unexpected and not report.mismatched
    assert_same_features(theirs, backbone["backbone"].bottom_up if "fpn" in builder else backbone["backbone"])


def test_resnet_without_fpn_has_its_last_stage_in_the_heads(resnet50: nn.Module, tmp_path: Path) -> None:
    cfg = resnet_cfg("build_resnet_backbone")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    model = build_model(cfg)
    report = load_initial_weights(model, saved(resnet50.state_dict(), tmp_path / "w.pth"))
    assert not report.unexpected
    assert torch.equal(model.roi_heads.res5[0].conv3.weight, resnet50.layer4[0].conv3.weight)
    assert torch.equal(model.backbone.res4[5].conv1.weight, resnet50.layer3[5].conv1.weight)


def moco_checkpoint(encoder: nn.Module, version: int, prefix: str) -> dict[str, Any]:
    """As moco's main_moco.py saves it; v2 has a hidden layer before the last."""
    head = {"fc.weight": torch.zeros(128, 2048), "fc.bias": torch.zeros(128)}
    if version == 2:
        head = {f"fc.{layer}.{name}": torch.zeros(3) for layer in (0, 2) for name in ("weight", "bias")}
    query = {key: value for key, value in encoder.state_dict().items() if not key.startswith("fc.")} | head
    state = {f"{prefix}encoder_q.{key}": value for key, value in query.items()}
    state |= {f"{prefix}encoder_k.{key}": torch.full_like(value, 3) for key, value in query.items()}
    state |= {f"{prefix}queue": torch.zeros(128, 8), f"{prefix}queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_moco_query_encoder(version: int, prefix: str, resnet50: nn.Module, tmp_path: Path) -> None:
    model = nn.ModuleDict({"backbone": build_backbone(resnet_cfg())})
    report = load_initial_weights(model, saved(moco_checkpoint(resnet50, version, prefix), tmp_path / "w.pth"))
    assert report.kind == "MoCo checkpoint, query encoder: torchvision's ResNet"
    assert_same_features(resnet50, model["backbone"].bottom_up)
    assert not report.unexpected and all("fpn" in key for key in report.missing)
    classifier = {1: "encoder_q.fc.bias", 2: "encoder_q.fc.2.bias"}[version]
    assert {classifier, "encoder_k.conv1.weight", "queue", "queue_ptr"} <= set(report.left_out)


def test_moco_with_a_resnest(tmp_path: Path) -> None:
    theirs, ours = randomised(timm.create_model("resnest14d")), ResNeSt(14)
    load_initial_weights(ours, saved(moco_checkpoint(theirs, 2, "module."), tmp_path / "w.pth"))
    assert_same_features(theirs, ours)


def test_stride_in_the_1x1_convolution_is_refused(resnet50: nn.Module, tmp_path: Path) -> None:
    """Detectron2's default is that of Caffe's weights; no key or shape tells."""
    cfg = resnet_cfg()
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    model = nn.ModuleDict({"backbone": build_backbone(cfg)})
    path = saved(resnet50.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"MODEL.RESNETS.STRIDE_IN_1X1: False in the file, True in the model"):
        load_initial_weights(model, path)


@pytest.mark.parametrize("key", ["AVD", "AVG_DOWN"])
def test_other_pooling_than_the_published_is_refused(key: str, tmp_path: Path) -> None:
    model = ResNeSt(14, **{key.lower(): False})
    path = saved(timm.create_model("resnest14d").state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=f"MODEL.RESNETS.{key}: True in the file, False in the model"):
        load_initial_weights(model, path)


def test_networks_that_pool_before_the_attention_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        theirs, model = timm.create_model("resnest50d_4s2x40d"), ResNeSt(50, radix=4, groups=2, bottleneck_width=40)
    weights = {key: torch.zeros(()).expand(value.shape) for key, value in theirs.state_dict().items()}
    path = saved(weights, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="RADIX 4, NUM_GROUPS 2: published networks .* pool before"):
        load_initial_weights(model, path)


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
@pytest.mark.parametrize("classifier", ["fc.weight", "stem.fc.bias", "linear.weight"])
def test_backbone_alone_with_detectron2s_names(prefix: str, classifier: str, tmp_path: Path) -> None:
    """As detectron2-ResNeSt's ImageNet weights and Detectron2's converted ones; and from a detector, its backbone."""
    ours = ResNeSt(14)
    weights = {f"{prefix}{key}": torch.rand(value.shape) for key, value in ResNeSt(14).state_dict().items()}
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": ours})})
    extra = {} if prefix else {classifier: torch.zeros(3)}
    report = load_initial_weights(model, saved(weights | extra, tmp_path / "w.pth"), only_prefix="backbone.bottom_up.")
    assert len(report.matched) == len(weights)
    assert report.left_out == list(extra)
    assert torch.equal(ours.stem.conv1_1.weight, weights[f"{prefix}stem.conv1_1.weight"])


def test_pixel_statistics_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load_initial_weights(ResNeSt(14), saved(timm.create_model("resnest14d").state_dict(), tmp_path / "w.pth"))
    assert "trained with INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675" in caplog.text
