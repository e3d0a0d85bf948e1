"""The evaluators that TEST.EVALUATORS may name. A project adds its own with `register_evaluator`."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from cupre_d2.errors import ConfigError, closest
from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
from cupre_d2.evaluation.label_evaluator import LabelEvaluator

PERCENT = "%"

# Of a config and a data set of its DATASETS.TEST.
Make = Callable[[CfgNode, str], DatasetEvaluator]


@dataclass(frozen=True)
class _Registered:
    make: Make
    units: Mapping[str, str]


_EVALUATORS: dict[str, _Registered] = {}


def register_evaluator(name: str, units: Mapping[str, str]) -> Callable[[Make], Make]:
    """Decorates a function (cfg, name of a data set) -> evaluator, which TEST.EVALUATORS then names.

    Args:
        units: of the metrics of each task that the evaluator returns: {task: "%"}, or {task: "cells"}.

    Raises:
        ConfigError: the name is taken, or a task that another evaluator measures in another unit.
    """

    def register(make: Make) -> Make:
        if name in _EVALUATORS:
            raise ConfigError(f"evaluator {name!r}: registered already; expected another name")
        for task, unit in units.items():
            if unit_of(task) not in (unit, None):
                raise ConfigError(f"evaluator {name!r}: task {task!r} in {unit!r}; others measure it in {unit_of(task)!r}")
        _EVALUATORS[name] = _Registered(make, dict(units))
        return make

    return register


def build_evaluators(cfg: CfgNode, name: str) -> list[DatasetEvaluator]:
    """Those of TEST.EVALUATORS for a data set of DATASETS.TEST; raises ConfigError for settings that cannot be."""
    return [evaluator.make(cfg, name) for evaluator in _named(cfg)]


def tasks(cfg: CfgNode) -> dict[str, str]:
    """{task: unit} of what the evaluators of TEST.EVALUATORS return; raises ConfigError for an unknown one."""
    return {task: unit for evaluator in _named(cfg) for task, unit in evaluator.units.items()}


def unit_of(task: str) -> str | None:
    """As the evaluator of this task is registered; None where none is."""
    return next((evaluator.units[task] for evaluator in _EVALUATORS.values() if task in evaluator.units), None)


def as_text(value: float | None, unit: str | None) -> str:
    """A metric without its unit: percent with one decimal, others with four significant digits, a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.1f}" if unit == PERCENT else f"{value:.4g}"


def _named(cfg: CfgNode) -> list[_Registered]:
    names = dict.fromkeys(cfg.TEST.EVALUATORS)
    if not names:
        raise ConfigError(f"TEST.EVALUATORS (): expected one or more of {', '.join(_EVALUATORS)}")
    for name in names:
        if name not in _EVALUATORS:
            raise ConfigError(f"TEST.EVALUATORS {name}: no such evaluator; {closest(name, _EVALUATORS)}")
    return [_EVALUATORS[name] for name in names]


@register_evaluator("cell_coco", units={"bbox": PERCENT, "segm": PERCENT})
def _cell_coco(cfg: CfgNode, name: str) -> DatasetEvaluator:
    return CellCOCOEvaluator(
        name,
        max_dets=cfg.TEST.CELL_COCO.MAX_DETS,
        area_limits=cfg.TEST.CELL_COCO.AREA_LIMITS,
        use_cats=cfg.TEST.CELL_COCO.USE_CATS,
        output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", name),
    )


@register_evaluator("labels", units={"labels": PERCENT})
def _labels(cfg: CfgNode, name: str) -> DatasetEvaluator:
    return LabelEvaluator(
        name,
        score_threshold=cfg.TEST.LABELS.SCORE_THRESHOLD,
        iou_thresholds=cfg.TEST.LABELS.IOU_THRESHOLDS,
        ties_match=cfg.TEST.LABELS.TIES_MATCH,
    )
