"""COCO-style evaluation with the changes of LIVECell's authors (areas and numbers of detections)."""

import itertools
import json
import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_util

from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")
AREAS = ("all", "small", "medium", "large")


class CellCOCOEvaluator(DatasetEvaluator):
    """AP and AR of boxes and masks, in percent.

    LIVECell's changes to COCO: small, medium and large are divided at 18² and 31² pixels; up to 2000 detections an image
    count, and AP is read at the last limit. Categories are told apart; with one category this is LIVECell's useCats 0.
    For masks, a detection's area is its mask's.

    Args:
        dataset_name: registered; its records are the ground truth.
        max_dets: ascending limits on detections an image; one AR each.
        area_limits: small below the first, large above the second, square pixels.
        output_dir: where coco_instances_results.json goes; None writes nothing.
    """

    def __init__(
        self,
        dataset_name: str,
        max_dets: Sequence[int] = (100, 500, 2000),
        area_limits: tuple[float, float] = (324, 961),
        output_dir: str | None = None,
    ) -> None:
        self._name = dataset_name
        self._max_dets = list(max_dets)
        small, large = area_limits
        self._area_ranges = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
        self._output_dir = output_dir
        self._detections: list[dict[str, Any]] = []

    def reset(self) -> None:
        self._detections = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            self._detections += detections_to_coco(output["instances"], image["image_id"])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"bbox": {…}, "segm": {…}}, each AP, AP50, AP75, APs, APm, APl, AR<max_dets>…, ARs, ARm, ARl in percent.

        NaN where there is no ground truth of an area; None on processes other than the first.

        Raises:
            DatasetError: a detection belongs to no image of the data set.
        """
        comm.synchronize()
        detections = list(itertools.chain.from_iterable(comm.gather(self._detections, dst=0)))
        if not comm.is_main_process():
            return None
        records = get_records(self._name)
        truth = records_to_coco(records, MetadataCatalog.get(self._name).thing_classes)
        self._warn_of_crowded_images(truth)
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
            with open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as file:
                json.dump(detections, file)
        detections = _with_numbers(self._name, records, detections)
        if not detections:
            logger.warning(f"{self._name}: the model detects nothing")
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        for task in TASKS:
            results[task] = self._evaluate_task(truth, detections, task)
            logger.info(f"{self._name}, {task}:\n{create_small_table(results[task])}")
        return results

    def _evaluate_task(self, truth: dict[str, Any], detections: list[dict[str, Any]], task: str) -> dict[str, float]:
        if task == "segm":
            # Without boxes, the evaluation takes the area of the mask.
            detections = [{key: value for key, value in d.items() if key != "bbox"} for d in detections]
        ground_truth = COCO(truth)
        evaluation = COCOeval_faster(ground_truth, _load_detections(ground_truth, detections), task)
        evaluation.params.maxDets = self._max_dets
        evaluation.params.areaRng = self._area_ranges
        evaluation.params.areaRngLbl = list(AREAS)
        evaluation.evaluate()
        evaluation.accumulate()
        return self._summarise(evaluation.eval["precision"], evaluation.eval["recall"], evaluation.params.iouThrs)

    def _summarise(self, precision: np.ndarray, recall: np.ndarray, thresholds: np.ndarray) -> dict[str, float]:
        """Reads the numbers off precision (IoU x recall x class x area x maxDets) and recall (without the second)."""
        values = {
            "AP": _percent(precision[:, :, :, 0, -1]),
            "AP50": _percent(precision[np.isclose(thresholds, 0.5), :, :, 0, -1]),
            "AP75": _percent(precision[np.isclose(thresholds, 0.75), :, :, 0, -1]),
        }
        for index, area in enumerate(AREAS[1:], start=1):
            values[f"AP{area[0]}"] = _percent(precision[:, :, :, index, -1])
        for index, limit in enumerate(self._max_dets):
            values[f"AR{limit}"] = _percent(recall[:, :, 0, index])
        for index, area in enumerate(AREAS[1:], start=1):
            values[f"AR{area[0]}"] = _percent(recall[:, :, index, -1])
        return values

    def _warn_of_crowded_images(self, truth: dict[str, Any]) -> None:
        counts: dict[int, int] = defaultdict(int)
        for annotation in truth["annotations"]:
            counts[annotation["image_id"]] += 1
        most = max(counts.values(), default=0)
        if most > self._max_dets[-1]:
            logger.warning(f"{self._name}: an image holds {most} cells; only {self._max_dets[-1]} detections an image count")


def _percent(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(100 * valid.mean()) if valid.size else float("nan")


def _load_detections(ground_truth: COCO, detections: list[dict[str, Any]]) -> COCO:
    if detections:
        return ground_truth.loadRes(detections)
    empty = COCO()
    empty.dataset = {**ground_truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def detections_to_coco(instances: Any, image_id: Any) -> list[dict[str, Any]]:
    """Detectron2's predicted instances of an image as COCO results: XYWH boxes, masks as RLE with str counts."""
    instances = instances.to("cpu")
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    masks = np.asfortranarray(instances.pred_masks.numpy().transpose(1, 2, 0).astype(np.uint8))
    rles = mask_util.encode(masks) if len(boxes) else []
    detections = []
    for box, score, category, rle in zip(
        boxes, instances.scores.tolist(), instances.pred_classes.tolist(), rles, strict=True
    ):
        rle["counts"] = rle["counts"].decode("ascii")
        detections.append(
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score, "segmentation": rle}
        )
    return detections


def records_to_coco(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Records as a COCO data set; images are numbered from 1 in order, categories as in the records."""
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        height, width = record["height"], record["width"]
        images.append({"id": number, "height": height, "width": width})
        for annotation in record.get("annotations", ()):
            rle = _as_rle(annotation["segmentation"], height, width)
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": annotation["category_id"],
                    "bbox": [float(value) for value in box],
                    "area": float(mask_util.area(rle)),
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                    "segmentation": {**rle, "counts": _as_text(rle["counts"])},
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(classes)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _as_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    if isinstance(segmentation, dict):
        return segmentation
    return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))


def _as_text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _with_numbers(
    name: str, records: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    numbers = {record["image_id"]: number for number, record in enumerate(records, start=1)}
    strangers = {str(d["image_id"]) for d in detections} - {str(image_id) for image_id in numbers}
    if strangers:
        raise DatasetError(f"{name}: detections of {len(strangers)} unknown images, e.g. image_id {min(strangers)}")
    return [{**detection, "image_id": numbers[detection["image_id"]]} for detection in detections]
