"""COCO-style evaluation with the changes of LIVECell's authors (areas and numbers of detections)."""

import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_util

from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)

RESULTS_FILE = "instances_results.json"
TASKS = ("bbox", "segm")
AREAS = ("all", "small", "medium", "large")


class CellCOCOEvaluator(DatasetEvaluator):
    """AP and AR of boxes and masks, in percent.

    LIVECell's changes to COCO: small, medium and large are divided at 18² and 31² pixels (a cell of just that area
    counts in both, as in COCO); up to 2000 detections an image count, and AP is read at the last limit. Categories are
    told apart; with one category this is LIVECell's useCats 0. For masks, a detection's area is its mask's. A true
    cell's area is its mask's too: Detectron2's records do not keep the area that an annotation file states.

    Args:
        dataset_name: registered; its records are the ground truth.
        max_dets: ascending limits on detections an image; one AR each.
        area_limits: small below the first, large above the second, square pixels.
        output_dir: where instances_results.json, COCO's results format, goes; None writes nothing.

    Raises:
        ConfigError: limits that are not positive and ascending.
    """

    def __init__(
        self,
        dataset_name: str,
        max_dets: Sequence[int] = (100, 500, 2000),
        area_limits: Sequence[float] = (324, 961),
        output_dir: str | None = None,
    ) -> None:
        _check_ascending("TEST.CELL_COCO.MAX_DETS", max_dets)
        _check_ascending("TEST.CELL_COCO.AREA_LIMITS", area_limits, length=2)
        self._name = dataset_name
        self._max_dets = list(max_dets)
        small, large = area_limits
        self._area_ranges = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
        self._output_dir = output_dir
        self._detections: list[tuple[Hashable, list[dict[str, Any]]]] = []

    def reset(self) -> None:
        self._detections = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            self._detections.append((image["image_id"], detections_to_coco(output["instances"], image["image_id"])))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"bbox": {…}, "segm": {…}}, each AP, AP50, AP75, APs, APm, APl, AR<max_dets>…, ARs, ARm, ARl in percent.

        NaN where there is no ground truth of an area; None on processes other than the first.

        Raises:
            DatasetError: an image_id that is not the data set's, or is there twice; unusable ground truth.
        """
        comm.synchronize()
        gathered = list(chain.from_iterable(comm.gather(self._detections, dst=0)))
        if not comm.is_main_process():
            return None
        records = get_records(self._name)
        detections = self._number_images(records, gathered)
        truth = COCO(records_to_coco(self._name, records))
        self._log_unusual(truth, detections)
        if self._output_dir:
            self._write(list(chain.from_iterable(of_image for _, of_image in gathered)))
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        for task in TASKS:
            results[task] = self._evaluate_task(truth, detections, task)
            logger.info("%s, %s:\n%s", self._name, task, create_small_table(results[task]))
        return results

    def _number_images(
        self, records: Sequence[dict[str, Any]], gathered: Sequence[tuple[Hashable, list[dict[str, Any]]]]
    ) -> list[dict[str, Any]]:
        """All detections, with the image's number among the records (from 1) as image_id: COCO wants integers."""
        _check_unique(f"dataset {self._name!r}", [record["image_id"] for record in records], "one record an image")
        numbers = {record["image_id"]: number for number, record in enumerate(records, start=1)}
        evaluated = [image_id for image_id, _ in gathered]
        _check_unique(f"predictions on {self._name!r}", evaluated, "one prediction an image")
        unknown = [image_id for image_id in evaluated if image_id not in numbers]
        if unknown:
            raise DatasetError(
                f"predictions on {self._name!r}: {len(unknown)} images are not the data set's, e.g. image_id "
                f"{unknown[0]!r}; expected ids such as {next(iter(numbers), None)!r}"
            )
        if len(evaluated) < len(records):
            logger.warning(
                "%s: %d of %d images were not evaluated; all their cells count as missed",
                self._name,
                len(records) - len(evaluated),
                len(records),
            )
        return [{**d, "image_id": numbers[image_id]} for image_id, of_image in gathered for d in of_image]

    def _evaluate_task(self, truth: COCO, detections: list[dict[str, Any]], task: str) -> dict[str, float]:
        if task == "segm":
            # Without boxes, the evaluation takes the area of the mask.
            detections = [{key: value for key, value in d.items() if key != "bbox"} for d in detections]
        evaluation = COCOeval_faster(truth, truth.loadRes(detections), task)
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

    def _log_unusual(self, truth: COCO, detections: Sequence[dict[str, Any]]) -> None:
        cells = Counter(a["image_id"] for a in truth.dataset["annotations"] if not a["iscrowd"])
        if not cells:
            logger.warning("%s: no ground truth, so every number is NaN", self._name)
        elif not detections:
            logger.warning("%s: the model detects nothing, so every number is 0", self._name)
        crowded = [count for count in cells.values() if count > self._max_dets[-1]]
        if crowded:
            logger.warning(
                "%s: %d images hold more cells (up to %d) than the %d detections an image that count",
                self._name,
                len(crowded),
                max(crowded),
                self._max_dets[-1],
            )

    def _write(self, detections: Sequence[dict[str, Any]]) -> None:
        """Writes the detections under the image and category ids of the data set's own annotation file."""
        assert self._output_dir is not None
        to_contiguous = MetadataCatalog.get(self._name).get("thing_dataset_id_to_contiguous_id", {})
        to_original = {contiguous: original for original, contiguous in to_contiguous.items()}
        original = [{**d, "category_id": to_original.get(d["category_id"], d["category_id"])} for d in detections]
        os.makedirs(self._output_dir, exist_ok=True)
        with open(os.path.join(self._output_dir, RESULTS_FILE), "w") as file:
            json.dump(original, file)


def detections_to_coco(instances: Instances, image_id: Hashable) -> list[dict[str, Any]]:
    """Detectron2's predicted instances of an image as COCO results: XYWH boxes, masks as RLE with str counts."""
    instances = instances.to("cpu")
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    columns = zip(
        boxes, instances.scores.tolist(), instances.pred_classes.tolist(), instances.pred_masks.numpy(), strict=True
    )
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "bbox": box,
            "score": score,
            # One at a time: a copy of all masks of a crowded image would be a gigabyte.
            "segmentation": _with_text(mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))),
        }
        for box, score, category, mask in columns
    ]


def records_to_coco(name: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Records as a COCO data set; images are numbered from 1 in order, categories as in the records.

    Args:
        name: the data set's, for errors.

    Raises:
        DatasetError: an annotation whose segmentation is missing, malformed or of another size than the image.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        images.append({"id": number, "height": record["height"], "width": record["width"]})
        for index, annotation in enumerate(record.get("annotations", ())):
            try:
                rle = to_rle(annotation.get("segmentation"), record["height"], record["width"])
            except ValueError as error:
                raise DatasetError(
                    f"dataset {name!r}: image_id {record['image_id']!r}, annotation {index}, field segmentation: "
                    f"{error}; expected polygons or an RLE of the image's size"
                ) from error
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": annotation["category_id"],
                    "bbox": [float(value) for value in box],
                    "area": float(mask_util.area(rle)),
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                    "segmentation": _with_text(rle),
                }
            )
    # A category without ground truth has neither AP nor AR, so that the data set's full list of classes isn't needed.
    categories = [{"id": category, "name": str(category)} for category in sorted({a["category_id"] for a in annotations})]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def to_rle(segmentation: Mapping[str, Any] | Sequence[Sequence[float]] | None, height: int, width: int) -> dict[str, Any]:
    """Polygons, or an RLE of any of COCO's kinds, as one compressed RLE.

    Raises:
        ValueError: neither, or an RLE of another size than height x width.
    """
    if not segmentation:
        raise ValueError("is missing or empty")
    if isinstance(segmentation, Mapping):
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(f"is an RLE of size {segmentation.get('size')} for an image of {[height, width]}")
        if isinstance(segmentation["counts"], str | bytes):
            return dict(segmentation)
        return mask_util.frPyObjects(dict(segmentation), height, width)
    try:
        return mask_util.merge(mask_util.frPyObjects([list(polygon) for polygon in segmentation], height, width))
    except Exception as error:  # pycocotools raises bare Exceptions.
        raise ValueError(f"is no list of polygons ({error})") from error


def _with_text(rle: Mapping[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _percent(values: np.ndarray) -> float:
    """Mean of what is defined; -1 marks what is not."""
    valid = values[values > -1]
    return float(100 * valid.mean()) if valid.size else float("nan")


def _check_ascending(key: str, values: Sequence[float], length: int | None = None) -> None:
    ascending = all(a < b for a, b in pairwise([0, *values]))
    if not values or not ascending or (length is not None and len(values) != length):
        count = "" if length is None else f"{length} "
        raise ConfigError(f"{key} {tuple(values)}: expected {count}positive numbers in ascending order")


def _check_unique(what: str, image_ids: Sequence[Hashable], expected: str) -> None:
    repeated = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{what}: {len(repeated)} image_ids are there more than once, e.g. {repeated[0]!r}; expected {expected}"
        )
