"""The evaluators that a config asks for."""

import math
import os

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from cupre_d2.errors import ConfigError
from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
from cupre_d2.evaluation.label_evaluator import LabelEvaluator


def build_evaluators(cfg: CfgNode, name: str) -> list[DatasetEvaluator]:
    """Those of TEST.EVALUATORS for a data set of DATASETS.TEST; raises ConfigError for settings that cannot be."""
    makers = {"cell_coco": _cell_coco, "labels": _labels}
    unknown = [kind for kind in cfg.TEST.EVALUATORS if kind not in makers]
    if unknown or not cfg.TEST.EVALUATORS:
        raise ConfigError(f"TEST.EVALUATORS {tuple(cfg.TEST.EVALUATORS)}: expected one or more of {', '.join(makers)}")
    return [makers[kind](cfg, name) for kind in dict.fromkeys(cfg.TEST.EVALUATORS)]


def as_text(value: float | None, unit: str) -> str:
    """A metric: "percent" with one decimal, any other unit with four significant digits; a dash for what is not defined.

    What is not defined is NaN in Python and null in results.json.
    """
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1f}" if unit == "percent" else f"{value:.4g}"


def _cell_coco(cfg: CfgNode, name: str) -> DatasetEvaluator:
    return CellCOCOEvaluator(
        name,
        max_dets=cfg.TEST.CELL_COCO.MAX_DETS,
        area_limits=cfg.TEST.CELL_COCO.AREA_LIMITS,
        use_cats=cfg.TEST.CELL_COCO.USE_CATS,
        output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", name),
    )


def _labels(cfg: CfgNode, name: str) -> DatasetEvaluator:
    return LabelEvaluator(
        name,
        score_threshold=cfg.TEST.LABELS.SCORE_THRESHOLD,
        iou_thresholds=cfg.TEST.LABELS.IOU_THRESHOLDS,
        ties_match=cfg.TEST.LABELS.TIES_MATCH,
    )


def tasks(cfg: CfgNode) -> dict[str, str]:
    """The tasks that TEST.EVALUATORS measure, and the unit of their metrics."""
    of = {"cell_coco": ("bbox", "segm"), "labels": ("labels",)}
    return {task: "percent" for kind in cfg.TEST.EVALUATORS for task in of[kind]}
