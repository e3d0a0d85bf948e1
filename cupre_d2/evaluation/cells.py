"""The cells of one image, the true and the detected ones, as columns; their masks as COCO's run-length encodings (RLE)."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode, Instances
from pycocotools import mask as mask_util

from cupre_d2.data.formats.rle import encode
from cupre_d2.errors import DatasetError

Rle = dict[str, Any]


class InvalidMask(ValueError):
    """What is no mask; `index` is its place among those that were to be encoded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class _Cells:
    """Columns of one length."""

    masks: list[Rle]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, indices: np.ndarray) -> Any:
        """The cells at these indices, in this order."""
        columns = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        chosen = indices.tolist()
        return type(self)(
            *([column[i] for i in chosen] if isinstance(column, list) else column[indices] for column in columns)
        )


@dataclass(frozen=True)
class TrueCells(_Cells):
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
        try:
            masks = to_rles([a.get("segmentation") for a in annotations], record["height"], record["width"])
        except InvalidMask as error:
            raise DatasetError(
                f"dataset {dataset_name!r}: image_id {record['image_id']!r}, annotation {error.index}, field segmentation: "
                f"{error}; expected polygons or an RLE of the image's size"
            ) from error
        areas = [a.get("area", area) for a, area in zip(annotations, areas_of(masks), strict=True)]
        return cls(
            _to_xywh(annotations),
            masks,
            np.array(areas, np.float64),
            np.array([a["category_id"] for a in annotations], np.int64),
            np.array([a.get("iscrowd", 0) for a in annotations], bool),
        )


@dataclass(frozen=True)
class Detections(_Cells):
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
            InvalidMask: a segmentation that is missing, malformed or of another size.
        """
        results = list(results)
        masks = to_rles([result.get("segmentation") for result in results], height, width)
        boxes = [result.get("bbox", box) for result, box in zip(results, mask_util.toBbox(masks), strict=True)]
        return cls(
            np.array(boxes, np.float64).reshape(-1, 4),
            masks,
            np.array([result["score"] for result in results], np.float64),
            np.array([result["category_id"] for result in results], np.int64),
        )

    def to_results(self, image_id: Hashable) -> list[dict[str, Any]]:
        """COCO results: XYWH boxes, masks as RLE with str counts."""
        numbers = (column.tolist() for column in (self.boxes, self.scores, self.categories))
        return [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score, "segmentation": mask}
            for box, score, category, mask in zip(*numbers, map(with_text, self.masks), strict=True)
        ]

    def best(self, limit: int) -> "Detections":
        """At most `limit`, those of highest score, in that order; of equal scores the first."""
        return self[np.argsort(-self.scores, kind="stable")[:limit]]


def _to_xywh(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """N x 4 float64."""
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    modes = [a["bbox_mode"] for a in annotations]
    for mode in set(modes):
        of_mode = np.array([one == mode for one in modes])
        boxes[of_mode] = BoxMode.convert(boxes[of_mode], mode, BoxMode.XYWH_ABS)
    return boxes


def overlaps(detections: Detections, truth: TrueCells, task: str) -> np.ndarray:
    """IoUs of boxes ("bbox") or masks ("segm"), D x G float64; for crowds, the intersection's share of the detection."""
    if not len(detections) or not len(truth):
        return np.zeros((len(detections), len(truth)))
    found: Any
    true: Any
    found, true = (detections.boxes, truth.boxes) if task == "bbox" else (detections.masks, truth.masks)
    return mask_util.iou(found, true, truth.crowd.astype(int).tolist())


def areas_of(masks: Sequence[Rle]) -> np.ndarray:
    """N float64, pixels."""
    # In parts, as pycocotools puts the number of masks into 8 bits: a warning of numpy 1, an error of numpy 2.
    parts = [mask_util.area(list(masks[start : start + 255])) for start in range(0, len(masks), 255)]
    return np.concatenate([np.zeros(0), *parts])


def to_rles(segmentations: Sequence[Any], height: int, width: int) -> list[Rle]:
    """A compressed RLE of each segmentation: a list of polygons, or an RLE of any of COCO's kinds.

    Raises:
        InvalidMask: one that is neither, or an RLE of another size than height x width.
    """
    rles: list[Rle] = []
    # All polygons at once, as a call for each cell would take twice as long.
    polygons: list[np.ndarray] = []
    parts: list[tuple[int, slice]] = []
    for index, segmentation in enumerate(segmentations):
        try:
            if isinstance(segmentation, dict) and segmentation:
                rles.append(_compressed(segmentation, height, width))
                continue
            cell = _polygons(segmentation)
        except ValueError as error:
            raise InvalidMask(index, str(error)) from error
        parts.append((index, slice(len(polygons), len(polygons) + len(cell))))
        polygons += cell
        rles.append({})
    drawn = mask_util.frPyObjects(polygons, height, width) if polygons else []
    for index, of_cell in parts:
        rles[index] = drawn[of_cell.start] if len(drawn[of_cell]) == 1 else mask_util.merge(drawn[of_cell])
    return rles


def _compressed(rle: Rle, height: int, width: int) -> Rle:
    if list(rle.get("size", ())) != [height, width]:
        raise ValueError(f"is an RLE of size {rle.get('size')} for an image of {[height, width]}")
    return rle if isinstance(rle["counts"], str | bytes) else mask_util.frPyObjects(rle, height, width)


def _polygons(segmentation: Any) -> list[np.ndarray]:
    """Each float64: x and y in turns."""
    if not segmentation:
        raise ValueError("is missing or empty")
    try:
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
    except (TypeError, ValueError) as error:
        raise ValueError(f"is no list of polygons ({error})") from error
    for polygon in polygons:
        if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"is no list of polygons (one has the shape {polygon.shape}; at least three points have 6 numbers)"
            )
    return polygons


def encode_mask(mask: np.ndarray) -> Rle:
    """A mask, H x W bool, as the compressed RLE that pycocotools.mask.encode makes of it, in a fourth of the time.

    Only the part with the cell is read column by column, as RLE wants it.
    """
    left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    return encode(mask[top : top + rows, left : left + columns], top, left, *mask.shape)


def with_text(rle: Mapping[str, Any]) -> Rle:
    """The RLE with counts as str, as JSON needs it."""
    counts = rle["counts"]
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def paint(rles: Sequence[Mapping[str, Any]], scores: Sequence[float] | np.ndarray, height: int, width: int) -> np.ndarray:
    """A label image, H x W int32: mask k has the value k + 1, and where masks overlap, the one with the highest score.

    Of equal scores the first wins. A mask that others hide altogether is not in the image.
    """
    labels = np.zeros(height * width, np.int32)
    for index in np.argsort(-np.asarray(scores, np.float64), kind="stable")[::-1].tolist():
        labels[pixels(rles[index])] = index + 1
    return labels.reshape(width, height).T


def pixels(rle: Mapping[str, Any]) -> np.ndarray:
    """The pixels of a mask, int64: column * H + row of each, ascending."""
    return np.flatnonzero(mask_util.decode(rle).view(bool).ravel(order="F"))
