"""Every config a user may name trains for a few iterations and ends with results."""

import json
from pathlib import Path

import pytest

from cupre_d2.engine import pipeline
from cupre_d2.engine.stages import load_stages

PIPELINES = sorted(str(path) for folder in ("configs", "configs/mini") for path in Path(folder).glob("*_5pct.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("config", PIPELINES)
def test_trains(config: str, small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    job = pipeline.prepare(config, [*slim, "OUTPUT_DIR", str(tmp_path)])
    pipeline.run(job)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [stage["iterations"] for stage in results["stages"]] == list(job.steps.values())
    assert {"bbox", "segm"} <= next(iter(results["metrics"].values())).keys()


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
