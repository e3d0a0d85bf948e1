"""Every config a user may name trains for a few iterations and ends with results."""

import json
import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from cupre_d2.engine import pipeline
from cupre_d2.engine.stages import load_stages

NAMED = sorted(str(path) for folder in ("configs", "configs/mini") for path in Path(folder).glob("*_5pct.yaml"))
# Each arm at each size; of its other targets the names alone differ.
PIPELINES = [file for file in NAMED if ("livecell_5pct" if "mini" not in file else "bbbc038_5pct") in file]
# Stages by themselves: published detectors' trainings.
PUBLISHED = sorted(str(path) for folder in ("configs/coco", "configs/livecell") for path in Path(folder).glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("config", PIPELINES + PUBLISHED)
def test_trains(config: str, small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    job = pipeline.prepare(config, [*slim, "OUTPUT_DIR", str(tmp_path)])
    pipeline.run(job)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [stage["iterations"] for stage in results["stages"]] == list(job.steps.values())
    assert {"bbox", "segm"} <= next(iter(results["metrics"].values())).keys()


@pytest.mark.parametrize("config", [file for file in NAMED if file not in PIPELINES])
def test_other_targets_are_the_same_arm(config: str) -> None:
    arm, name = re.fullmatch(r"(.*?)_((?:livecell|bbbc038).*)_5pct.yaml", config).groups()
    _, stages = load_stages(config)
    _, same = load_stages(f"{arm}.yaml", ["PIPELINE.TARGET", name, "PIPELINE.SUBSET", "5pct"])
    assert [stage.name for stage in stages] == [stage.name for stage in same]
    assert stages[-1].cfg.DATASETS == same[-1].cfg.DATASETS
    assert (f"{name}_train_5pct",) == stages[-1].cfg.DATASETS.TRAIN
    wide = "livecell" in name
    assert (stages[-1].cfg.MODEL.PIXEL_STD[0] < 12) == wide == (stages[-1].cfg.INPUT.MASK_FORMAT == "polygon")


def test_arms_differ_as_the_paper_says() -> None:
    def last(arm: str) -> list[tuple[str, bool]]:
        _, stages = load_stages(f"configs/{arm}_livecell_5pct.yaml")
        return [(stage.cfg.TRAINER, stage.cfg.SOLVER.L2SP.ENABLED) for stage in stages]

    pretrain, finetune = ("DetectionTrainer", False), ("DetectionTrainer", False)
    assert last("scratch") == [finetune]
    assert last("coco") == [pretrain, finetune]
    assert last("cells_moco") == [("MoCoTrainer", False), finetune]
    assert last("cupre") == [pretrain, ("AlternatingTrainer", True), finetune]
    assert last("cocopp") == [pretrain, ("MoCoTrainer", False), finetune]
    assert last("cupremm") == [pretrain, ("AlternatingTrainer", False), finetune]
    assert last("cuprepp") == [pretrain, ("AlternatingTrainer", True), ("DetectionTrainer", True)]


def test_cocopp_takes_neck_and_head_from_coco_and_the_backbone_from_moco() -> None:
    output_dir, stages = load_stages("configs/cocopp_livecell_5pct.yaml")
    finetune = stages[-1].cfg.MODEL
    assert f"{output_dir}/1_coco_pretrain/model_final.pth" == finetune.WEIGHTS
    assert f"{output_dir}/2_moco/model_final.pth" == finetune.BACKBONE_WEIGHTS


def test_paper_size_is_livecells_anchor_based_config() -> None:
    cfg = load_stages("configs/cupre_livecell_5pct.yaml")[1][-1].cfg
    assert cfg.MODEL.RESNETS.DEPTH == 200
    assert [size for (size,) in cfg.MODEL.ANCHOR_GENERATOR.SIZES] == [4, 9, 17, 31, 64, 127]
    assert cfg.MODEL.RPN.IN_FEATURES == ["p2", "p2", "p3", "p4", "p5", "p6"]
    assert (cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TEST) == (12000, 3000)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 3000
    assert (cfg.MODEL.PIXEL_MEAN[0], cfg.MODEL.PIXEL_STD[0]) == (128.0, 11.578)


def test_bbbc038_keeps_the_pixel_statistics_of_its_weights() -> None:
    *_, before, last = load_stages("configs/cupre_bbbc038_5pct.yaml")[1]
    assert last.cfg.MODEL.PIXEL_STD == before.cfg.MODEL.PIXEL_STD
    assert last.cfg.INPUT.MASK_FORMAT == "bitmask"


def published(name: str) -> CfgNode:
    return load_stages(f"configs/{name}.yaml")[1][0].cfg


def test_the_coco_cascade_has_the_published_settings() -> None:
    cfg = published("coco/mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x")
    resnets, boxes, masks = cfg.MODEL.RESNETS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    assert (resnets.DEPTH, resnets.RADIX, resnets.STRIDE_IN_1X1, resnets.DEEP_STEM) == (200, 2, False, True)
    assert {resnets.NORM, cfg.MODEL.FPN.NORM, boxes.NORM, masks.NORM} == {"SyncBN"}
    assert (boxes.NAME, boxes.NUM_CONV, boxes.NUM_FC, boxes.CLS_AGNOSTIC_BBOX_REG) == ("FastRCNNConvFCHead", 4, 1, True)
    assert (masks.NUM_CONV, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN) == (8, 2000)
    assert [*cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS] == [0.5, 0.6, 0.7]
    assert cfg.MODEL.PIXEL_MEAN == [123.68, 116.779, 103.939]
    assert cfg.MODEL.PIXEL_STD == [58.393, 57.12, 57.375]
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ("RGB", (640, 864), 1440)
    assert (cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE) == (True, "relative_range", [0.9, 0.9])
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.STEPS, solver.MAX_ITER) == (16, 0.02, (240000, 255000), 270000)


def test_deformable_configs_differ_in_nothing_else() -> None:
    plain = published("coco/mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x").clone()
    deformable = published("coco/mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x")
    resnets = deformable.MODEL.RESNETS
    assert resnets.DEFORM_ON_PER_STAGE == [False, True, True, True]
    assert (resnets.DEFORM_MODULATED, resnets.DEFORM_NUM_GROUPS) == (True, 2)
    plain.defrost()
    for key in ("DEFORM_ON_PER_STAGE", "DEFORM_MODULATED", "DEFORM_NUM_GROUPS"):
        plain.MODEL.RESNETS[key] = resnets[key]
    plain.OUTPUT_DIR = deformable.OUTPUT_DIR
    assert plain == deformable


@pytest.mark.parametrize("depth", [50, 101])
def test_smaller_cascades(depth: int) -> None:
    cfg = published(f"coco/mask_cascade_rcnn_ResNeSt_{depth}_FPN_syncBN_1x")
    assert depth == cfg.MODEL.RESNETS.DEPTH
    assert (cfg.MODEL.RESNETS.RADIX, cfg.SOLVER.MAX_ITER) == (2, 90000)


def test_livecells_config_starts_from_the_deformable_cascade() -> None:
    cfg = published("livecell/anchor_based")
    assert cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE == [False, True, True, True]
    assert (cfg.INPUT.FORMAT, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == ("BGR", 30000, (17500, 20000))
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN) == (1, 3000)
