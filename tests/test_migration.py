"""Configs of detectron2-ResNeSt, and so LIVECell's, read unchanged. The files here are written from facts/cupre.md §3.3."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from cupre_d2.config import add_cupre_config, default_config
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import ConfigError
from cupre_d2.migration import migrate

LIVECELL = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: weights/mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x-e1901134.pth
  MASK_ON: true
  PIXEL_MEAN: [128, 128, 128]
  PIXEL_STD: [11.578, 11.578, 11.578]
  BACKBONE: {NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS:
    DEPTH: 200
    RADIX: 2
    BOTTLENECK_WIDTH: 64
    STRIDE_IN_1X1: false
    NORM: SyncBN
    OUT_FEATURES: [res2, res3, res4, res5]
    DEFORM_ON_PER_STAGE: [false, true, true, true]
    DEFORM_MODULATED: true
    DEFORM_NUM_GROUPS: 2
  FPN: {IN_FEATURES: [res2, res3, res4, res5], NORM: SyncBN}
  ANCHOR_GENERATOR:
    SIZES: [[4], [9], [17], [31], [64], [127]]
    ASPECT_RATIOS: [[0.25, 0.5, 1.0, 2.0, 4.0]]
  RPN:
    IN_FEATURES: [p2, p2, p3, p4, p5, p6]
    BATCH_SIZE_PER_IMAGE: 256
    PRE_NMS_TOPK_TRAIN: 12000
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TRAIN: 3000
    POST_NMS_TOPK_TEST: 3000
  ROI_HEADS:
    NAME: CascadeROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
    BATCH_SIZE_PER_IMAGE: 512
    NUM_CLASSES: 1
  ROI_BOX_HEAD:
    {NAME: FastRCNNConvFCHead, NUM_CONV: 4, NUM_FC: 1, POOLER_RESOLUTION: 7, NORM: SyncBN, CLS_AGNOSTIC_BBOX_REG: true}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 8, POOLER_RESOLUTION: 14, NORM: SyncBN}
DATASETS: {TRAIN: [livecell_train], TEST: [livecell_val]}
INPUT:
  FORMAT: BGR
  MIN_SIZE_TRAIN: [440, 480, 520, 560, 580, 620]
  MIN_SIZE_TEST: 800
  MAX_SIZE_TRAIN: 1333
  CROP: {ENABLED: false}
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: [17500, 20000]
  MAX_ITER: 30000
  CHECKPOINT_PERIOD: 500
TEST:
  DETECTIONS_PER_IMAGE: 3000
  EVAL_PERIOD: 500
  PRECISE_BN: {ENABLED: false}
VERSION: 2
"""
# Keys of the fork that vanilla Detectron2 raises on, as a config that the fork dumps has them.
FORKS_DEFAULTS = {"RADIX": 2, "BOTTLENECK_WIDTH": 64, "DEEP_STEM": False, "AVD": False, "AVG_DOWN": False}


def dumped() -> str:
    """The same config as the fork would save it: every key that Detectron2 has, and the fork's."""
    cfg = get_cfg()
    for key, value in FORKS_DEFAULTS.items():
        cfg.MODEL.RESNETS[key] = value
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(LIVECELL)))
    return cfg.dump()


@pytest.fixture(params=["short", "dumped"])
def livecell_yaml(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (tmp_path / "livecell_config.yaml").write_text(LIVECELL if request.param == "short" else dumped())
    return str(tmp_path / "livecell_config.yaml")


def test_livecells_own_file_is_the_shipped_config(livecell_yaml: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="cupre_d2"):
        _, (stage,) = load_stages(livecell_yaml)
    assert "MODEL.BACKBONE.NAME build_resnet_fpn_backbone means build_resnest_fpn_backbone" in caplog.text
    assert caplog.text.count("DEEP_STEM, AVD, AVG_DOWN are on") == 1
    shipped = load_stages("configs/livecell/anchor_based.yaml")[1][0].cfg
    # What a user chooses for this run.
    own = {"OUTPUT_DIR", "SEED", "MODEL.WEIGHTS"}
    assert {key for key, value in flat(stage.cfg).items() if value != flat(shipped)[key]} == own


def listed(value: Any) -> Any:
    """With lists for tuples, as YAML has them."""
    return [listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: listed(value)}
    return found


def test_a_file_is_not_changed_in_place() -> None:
    raw = yaml.safe_load(LIVECELL)
    before = copy.deepcopy(raw)
    assert migrate(raw, "livecell.yaml") != before
    assert raw == before


@pytest.mark.parametrize(
    "resnets", [{"DEPTH": 50}, {"DEPTH": 50, "RADIX": 1}, {"RADIX": 1, "DEEP_STEM": False, "AVD": False}]
)
def test_a_resnet_stays_a_resnet(resnets: dict[str, Any]) -> None:
    raw = {"MODEL": {"BACKBONE": {"NAME": "build_resnet_fpn_backbone"}, "RESNETS": resnets}}
    assert migrate(raw, "resnet.yaml") == raw


def test_backbone_without_fpn() -> None:
    raw = {"MODEL": {"BACKBONE": {"NAME": "build_resnet_backbone"}, "RESNETS": {"RADIX": 2}}}
    migrated = migrate(raw, "c4.yaml")["MODEL"]
    assert migrated["BACKBONE"]["NAME"] == "build_resnest_backbone"
    assert migrated["RESNETS"] == {"RADIX": 2, "DEEP_STEM": True, "AVD": True, "AVG_DOWN": True}


@pytest.mark.parametrize("name", ["build_resnest_fpn_backbone", "build_resnet_fpn_backbone"])
def test_a_config_that_this_plugin_saved_stays_as_it_is(name: str, tmp_path: Path) -> None:
    """It holds a RADIX of 2 even where Detectron2's ResNet is asked for."""
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.AVD = False
    (tmp_path / "config.yaml").write_text(cfg.dump())
    model = load_stages(str(tmp_path / "config.yaml"))[1][0].cfg.MODEL
    assert name == model.BACKBONE.NAME
    assert model.RESNETS.AVD is False


@pytest.mark.parametrize("key", ["DEEP_STEM", "AVD", "AVG_DOWN"])
def test_a_resnet_with_the_forks_parts_is_refused(key: str) -> None:
    raw = {"MODEL": {"BACKBONE": {"NAME": "build_resnet_fpn_backbone"}, "RESNETS": {"RADIX": 1, key: True}}}
    with pytest.raises(ConfigError, match=f"d.yaml: MODEL.RESNETS.{key} True without RADIX above 1"):
        migrate(raw, "d.yaml")


def test_a_builder_without_a_resnest_is_refused() -> None:
    raw = {"MODEL": {"BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone"}, "RESNETS": {"RADIX": 2}}}
    with pytest.raises(ConfigError, match="r.yaml: MODEL.BACKBONE.NAME build_retinanet_resnet_fpn_backbone with RADIX 2"):
        migrate(raw, "r.yaml")


@pytest.mark.parametrize(
    "raw", [{}, {"MODEL": None}, {"MODEL": {"RESNETS": 3, "BACKBONE": {"NAME": 4}}}, {"MODEL": {"RESNETS": {"RADIX": "2"}}}]
)
def test_odd_content_is_left_to_the_check_of_types(raw: dict[str, Any]) -> None:
    assert migrate(raw, "odd.yaml") == raw


def test_other_unknown_keys_are_still_refused(tmp_path: Path) -> None:
    (tmp_path / "typo.yaml").write_text(LIVECELL.replace("RADIX: 2", "RADIX: 2\n    RADIUS: 2"))
    with pytest.raises(ConfigError, match="typo.yaml: .*RADIUS: no such config key; did you mean .*RADIX"):
        load_stages(str(tmp_path / "typo.yaml"))


# What 0.1.0 had in AMT2.MOCO_SOLVER; the rest the MoCo phase took from SOLVER.
KEYS_OF_0_1_0 = (
    *("OPTIMIZER", "IMS_PER_BATCH", "BASE_LR", "MOMENTUM", "WEIGHT_DECAY"),
    *("LR_SCHEDULER_NAME", "WARMUP_ITERS", "ACCUMULATE"),
)


def dumped_by_0_1_0(policy: str, trainer: str = "AlternatingTrainer") -> dict[str, Any]:
    cfg = default_config()
    cfg.merge_from_list(["TRAINER", trainer, "SOLVER.L2SP.ENABLED", True, "SOLVER.GAMMA", 0.5, "SOLVER.STEPS", (7,)])
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", True, "AMT2.MOCO_SOLVER.BASE_LR", 0.25])
    saved = yaml.safe_load(cfg.dump())
    del saved["AMT2"]["MOCO"], saved["AMT2"]["FREEZE_BACKBONE"], saved["TEST"]["BEST"]
    saved["AMT2"]["BACKBONE_POLICY"] = policy
    saved["AMT2"]["MOCO_SOLVER"] = {key: saved["AMT2"]["MOCO_SOLVER"][key] for key in KEYS_OF_0_1_0}
    return saved


@pytest.mark.parametrize(
    ("policy", "frozen", "l2sp"), [("l2sp", False, True), ("free", False, False), ("frozen", True, False)]
)
def test_a_config_that_0_1_0_saved(policy: str, frozen: bool, l2sp: bool, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dumped_by_0_1_0(policy)))
    cfg = load_stages(str(tmp_path / "config.yaml"))[1][0].cfg
    assert cfg.AMT2.FREEZE_BACKBONE is frozen and cfg.SOLVER.L2SP.ENABLED is l2sp
    solver = cfg.AMT2.MOCO_SOLVER
    assert (solver.BASE_LR, solver.GAMMA, solver.CLIP_GRADIENTS.ENABLED, solver.STEPS) == (0.25, 0.5, True, ())


def test_stages_that_never_read_the_keys_of_amt2() -> None:
    saved = dumped_by_0_1_0("frozen", "DetectionTrainer")
    migrated = migrate(saved, "config.yaml")
    assert "BACKBONE_POLICY" in saved["AMT2"] and "BACKBONE_POLICY" not in migrated["AMT2"]
    assert migrated["SOLVER"] == saved["SOLVER"]
    assert migrated["AMT2"]["MOCO_SOLVER"] == saved["AMT2"]["MOCO_SOLVER"]


def test_an_old_key_where_it_cannot_be_migrated() -> None:
    successor = "AMT2.BACKBONE_POLICY.*: no such config key any more; .*frozen is AMT2.FREEZE_BACKBONE True"
    with pytest.raises(ConfigError, match=f"command line: {successor}"):
        load_stages("configs/mini/stages/amt2.yaml", ["AMT2.BACKBONE_POLICY", "frozen"])
    with pytest.raises(ConfigError, match=f"arm.yaml: {successor}"):
        migrate({"AMT2": {"BACKBONE_POLICY": "frozen"}}, "arm.yaml")
    with pytest.raises(ConfigError, match="old.yaml: AMT2.BACKBONE_POLICY 'thawed': expected one of l2sp, free, frozen"):
        migrate({"AMT2": {"BACKBONE_POLICY": "thawed"}}, "old.yaml")


@pytest.mark.parametrize(
    "odd", [{"AMT2": {"BACKBONE_POLICY": "frozen", "MOCO_SOLVER": 3}, "SOLVER": {"L2SP": "x"}}, {"AMT2": 4}]
)
def test_odd_content_of_old_sections(odd: dict[str, Any]) -> None:
    migrate({"TRAINER": "AlternatingTrainer", **odd}, "odd.yaml")
