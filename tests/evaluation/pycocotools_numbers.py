"""What the official implementation makes of records and detections, from scratch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def run_pycocotools(
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    task: str,
    max_dets: Sequence[int],
    area_ranges: Sequence[Sequence[float]],
    use_cats: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (IoU x recall x class x area x limit) and recall (without the second) of COCO's JSON; -1 if undefined."""
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    if task == "segm":
        # As LIVECell's script and Detectron2 do: without a box, a detection's area is its mask's.
        detections = [{key: value for key, value in detection.items() if key != "bbox"} for detection in detections]
    else:
        detections = [{key: value for key, value in d.items() if key != "segmentation"} for d in detections]
    evaluation = COCOeval(coco, coco.loadRes(detections), task)
    evaluation.params.maxDets = list(max_dets)
    evaluation.params.areaRng = [list(area_range) for area_range in area_ranges]
    evaluation.params.useCats = int(use_cats)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def summarise(precision: np.ndarray, recall: np.ndarray, max_dets: Sequence[int], areas: Sequence[str]) -> dict[str, float]:
    """The names of CellCOCOEvaluator, as LIVECell's script reads the numbers off."""

    def percent(values: np.ndarray) -> float:
        return 100 * np.mean(values[values > -1]) if (values > -1).any() else math.nan

    values = {"AP": percent(precision[:, :, :, 0, -1])}
    values |= {"AP50": percent(precision[0, :, :, 0, -1]), "AP75": percent(precision[5, :, :, 0, -1])}
    values |= {f"AP{area}": percent(precision[:, :, :, i, -1]) for i, area in enumerate(areas, start=1)}
    values |= {f"AR{limit}": percent(recall[:, :, 0, i]) for i, limit in enumerate(max_dets)}
    values |= {f"AR{area}": percent(recall[:, :, i, -1]) for i, area in enumerate(areas, start=1)}
    values["AFNR"] = 100 - values[f"AR{max_dets[-1]}"]
    for index in range(10):
        values[f"precision-IoU{50 + 5 * index}"] = percent(precision[index, :, :, 0, -1])
        values[f"recall-IoU{50 + 5 * index}"] = percent(recall[index, :, 0, -1])
    return values


def of_group(name: str, values: dict[str, float], limit: int) -> dict[str, float]:
    return {f"{metric}-{name}": values[metric] for metric in ("AP", "AP50", "AP75", f"AR{limit}", "AFNR")}
