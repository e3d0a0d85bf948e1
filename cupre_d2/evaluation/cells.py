"""The cells of one image as columns: the true ones and the detected ones."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances
from faster_coco_eval import mask as fast_mask

from cupre_d2.errors import DatasetError
from cupre_d2.evaluation.masks import Rle, encode_mask, to_rle, with_text


@dataclass(frozen=True)
class TrueCells:
    """Annotations of an image.

    Attributes:
        boxes: N x 4 float64, XYWH in pixels.
        masks: N compressed RLEs.
        areas: N float64, square pixels: what the annotation states, else the mask's.
        categories: N int64.
        crowd: N bool.
    """

    boxes: np.ndarray
    masks: list[Rle]
    areas: np.ndarray
    categories: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, record: Mapping[str, Any], dataset_name: str) -> "TrueCells":
        """The annotations of a Detectron2 record; none if it has none.

        Raises:
            DatasetError: a segmentation that is missing, malformed or of another size than the image.
        """
        annotations = record.get("annotations", ())
        masks = []
        for index, annotation in enumerate(annotations):
            try:
                masks.append(to_rle(annotation.get("segmentation"), record["height"], record["width"]))
            except ValueError as error:
                raise DatasetError(
                    f"dataset {dataset_name!r}: image_id {record['image_id']!r}, annotation {index}, field segmentation: "
                    f"{error}; expected polygons or an RLE of the image's size"
                ) from error
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS) for a in annotations]
        areas = [a.get("area", area) for a, area in zip(annotations, fast_mask.area(masks), strict=True)]
        return cls(
            np.array(boxes, np.float64).reshape(-1, 4),
            masks,
            np.array(areas, np.float64),
            np.array([a["category_id"] for a in annotations], np.int64),
            np.array([a.get("iscrowd", 0) for a in annotations], bool),
        )

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, indices: np.ndarray) -> "TrueCells":
        return _take(self, indices)


@dataclass(frozen=True)
class Detections:
    """Detections in an image.

    Attributes:
        boxes: N x 4 float64, XYWH in pixels.
        masks: N compressed RLEs.
        scores: N float64.
        categories: N int64, as in the records.
    """

    boxes: np.ndarray
    masks: list[Rle]
    scores: np.ndarray
    categories: np.ndarray

    @classmethod
    def of_instances(cls, instances: Instances) -> "Detections":
        """Detectron2's predicted instances: pred_boxes, pred_masks (N x H x W bool), scores, pred_classes."""
        instances = instances.to("cpu")
        boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        return cls(
            boxes.double().numpy(),
            # One at a time: a copy of all masks of a crowded image would be a gigabyte.
            [encode_mask(mask) for mask in instances.pred_masks.numpy()],
            instances.scores.double().numpy(),
            instances.pred_classes.numpy().astype(np.int64),
        )

    @classmethod
    def of_results(cls, results: Iterable[Mapping[str, Any]], height: int, width: int) -> "Detections":
        """COCO results of one image, with RLE or polygons; a missing bbox is the mask's; category_id as in the records.

        Raises:
            ValueError: a segmentation that is missing, malformed or of another size.
        """
        results = list(results)
        masks = [to_rle(result.get("segmentation"), height, width) for result in results]
        boxes = [result.get("bbox", box) for result, box in zip(results, fast_mask.toBbox(masks), strict=True)]
        return cls(
            np.array(boxes, np.float64).reshape(-1, 4),
            masks,
            np.array([result["score"] for result in results], np.float64),
            np.array([result["category_id"] for result in results], np.int64),
        )

    def to_results(self, image_id: Hashable) -> list[dict[str, Any]]:
        """COCO results: XYWH boxes, masks as RLE with str counts."""
        columns = zip(
            self.boxes.tolist(), self.scores.tolist(), self.categories.tolist(), map(with_text, self.masks), strict=True
        )
        return [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score, "segmentation": mask}
            for box, score, category, mask in columns
        ]

    def best(self, limit: int) -> "Detections":
        """At most `limit`, those of highest score, in that order; of equal scores the first."""
        return self[np.argsort(-self.scores, kind="stable")[:limit]]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, indices: np.ndarray) -> "Detections":
        return _take(self, indices)


def _take(cells: Any, indices: np.ndarray) -> Any:
    """The cells at these indices, in this order."""
    columns = (getattr(cells, field.name) for field in fields(cells))
    return type(cells)(
        *([column[i] for i in indices.tolist()] if isinstance(column, list) else column[indices] for column in columns)
    )
