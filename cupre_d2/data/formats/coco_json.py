"""COCO's instances JSON, read with the checks that Detectron2's own reader leaves to a crash during training."""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

# x, y of three points.
_MIN_POLYGON = 6


def _in_folder(folder: Path, file_name: str) -> Path:
    return folder / file_name


def load_coco_json(
    json_file: Path, image_root: Path, locate: Callable[[Path, str], Path] = _in_folder
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Reads a COCO instances file.

    Polygons stay polygons, RLE stays RLE (compressed, counts as str), crowds stay with iscrowd 1, an image without
    annotations keeps an empty list. Annotations without a mask or with a degenerate one (a polygon of fewer than three
    points, an RLE without a pixel, a box without area) are left out, counted and logged.

    Args:
        json_file: the annotations.
        image_root: the folder that the file names in it are relative to.
        locate: finds an image given image_root and its file name, for sets whose folders differ from the JSON.

    Returns:
        The records, in the file's order, category ids 0-based in order of the file's ids; and the categories, id in the
        file to name, in that order.

    Raises:
        DatasetError: a file or folder is missing, the file is no JSON or not COCO's, has no image or no category, an
            annotation's image or category is unknown, a mask or box is malformed, or an image is not on disk.
    """
    content = _read(json_file)
    if not image_root.is_dir():
        raise DatasetError(f"{image_root}: no such folder; expected the images of {json_file}")
    categories = _categories(json_file, content)
    records = _images(json_file, content, image_root.absolute(), locate)
    _add_annotations(json_file, content, records, {category: index for index, category in enumerate(categories)})
    return list(records.values()), categories


def _read(json_file: Path) -> dict[str, Any]:
    try:
        content = json.loads(json_file.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{json_file}: no such file; expected COCO's instances JSON") from error
    except OSError as error:
        raise DatasetError(f"{json_file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(f"{json_file}: is no JSON ({error}); expected COCO's instances format") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file}: expected an object with images, annotations and categories")
    return content


def _entries(json_file: Path, content: dict[str, Any], field: str) -> list[dict[str, Any]]:
    entries = content.get(field)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetError(f"{json_file}: field {field}: expected a list of objects")
    return entries


def _field(json_file: Path, record: str, entry: dict[str, Any], field: str, kinds: type | tuple[type, ...]) -> Any:
    value = entry.get(field)
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        found = repr(value) if field in entry else "missing"
        raise DatasetError(f"{json_file}: {record}, field {field}: {found}; expected {names}")
    return value


def _categories(json_file: Path, content: dict[str, Any]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for index, entry in enumerate(_entries(json_file, content, "categories")):
        category = _field(json_file, f"category number {index}", entry, "id", int)
        if category in categories:
            raise DatasetError(f"{json_file}: category {category}, field id: used twice; expected unique ids")
        categories[category] = _field(json_file, f"category {category}", entry, "name", str)
    if not categories:
        raise DatasetError(f"{json_file}: field categories: empty; expected at least one category")
    return dict(sorted(categories.items()))


def _images(
    json_file: Path, content: dict[str, Any], image_root: Path, locate: Callable[[Path, str], Path]
) -> dict[Hashable, dict[str, Any]]:
    records: dict[Hashable, dict[str, Any]] = {}
    missing = []
    for index, entry in enumerate(_entries(json_file, content, "images")):
        image_id = _field(json_file, f"image number {index}", entry, "id", (int, str))
        name = f"image {image_id}"
        if image_id in records:
            raise DatasetError(f"{json_file}: {name}, field id: used twice; expected unique ids")
        file = locate(image_root, _field(json_file, name, entry, "file_name", str))
        size = {field: _field(json_file, name, entry, field, int) for field in ("height", "width")}
        if min(size.values()) < 1:
            raise DatasetError(f"{json_file}: {name}, fields height and width: {size}; expected positive numbers")
        if not file.is_file():
            missing.append(f"{name}, field file_name: {file}")
        records[image_id] = {"file_name": str(file), "image_id": image_id, **size, "annotations": []}
    if not records:
        raise DatasetError(f"{json_file}: field images: empty; expected at least one image")
    if missing:
        raise DatasetError(f"{json_file}: {missing[0]} is not on disk ({len(missing)} of {len(records)} images are not)")
    return records


def _add_annotations(
    json_file: Path, content: dict[str, Any], records: dict[Hashable, dict[str, Any]], contiguous: dict[int, int]
) -> None:
    skipped: Counter[str] = Counter()
    for entry in _entries(json_file, content, "annotations"):
        name = f"annotation {entry.get('id', 'without id')}"
        record = records.get(_field(json_file, name, entry, "image_id", (int, str)))
        if record is None:
            raise DatasetError(
                f"{json_file}: {name}, field image_id: {entry['image_id']!r}; expected the id of an image in the file"
            )
        category = contiguous.get(_field(json_file, name, entry, "category_id", int))
        if category is None:
            raise DatasetError(
                f"{json_file}: {name}, field category_id: {entry['category_id']!r}; "
                f"expected one of {', '.join(map(str, contiguous))}"
            )
        segmentation = _segmentation(json_file, name, entry, record, skipped)
        box = _box(json_file, name, entry, segmentation, skipped) if segmentation else None
        if segmentation and box:
            record["annotations"].append(
                {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": segmentation,
                    "category_id": category,
                    "iscrowd": _crowd(json_file, name, entry),
                }
            )
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        logger.warning("%s: left out %s (of %d annotations)", json_file, reasons, len(content["annotations"]))


def _crowd(json_file: Path, name: str, entry: dict[str, Any]) -> int:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DatasetError(f"{json_file}: {name}, field iscrowd: {crowd!r}; expected 0 or 1")
    return int(crowd)


def _segmentation(json_file: Path, name: str, entry: dict[str, Any], record: dict[str, Any], skipped: Counter[str]) -> Any:
    """Polygons or RLE; None, and counted, where nothing is left."""
    segmentation = entry.get("segmentation")
    if not segmentation:
        skipped["annotations without a mask"] += 1
        return None
    if isinstance(segmentation, dict):
        rle = _rle(json_file, name, segmentation, record["height"], record["width"])
        if not mask_util.area(rle):
            skipped["annotations with an empty mask"] += 1
            return None
        return rle
    if not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)):
        raise DatasetError(
            f"{json_file}: {name}, field segmentation: expected a list of polygons [x, y, x, y, ...] or an RLE"
        )
    polygons = [polygon for polygon in segmentation if len(polygon) >= _MIN_POLYGON]
    if not polygons:
        skipped["annotations with only degenerate polygons"] += 1
        return None
    if len(polygons) < len(segmentation):
        skipped["degenerate parts of annotations with several polygons"] += len(segmentation) - len(polygons)
    return polygons


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) % 2:
        return False
    return _finite(polygon)


def _finite(numbers: list[Any]) -> bool:
    # The sum is finite if all are: much the fastest check for the hundred million coordinates of LIVECell.
    try:
        return math.isfinite(sum(numbers))
    except TypeError:
        return False


def _rle(json_file: Path, name: str, rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise DatasetError(f"{json_file}: {name}, field segmentation.size: {size}; expected its image's [{height}, {width}]")
    if isinstance(counts, str):
        return {"size": size, "counts": counts}
    if not isinstance(counts, list) or not _finite(counts) or min(counts) < 0 or sum(counts) != height * width:
        raise DatasetError(
            f"{json_file}: {name}, field segmentation.counts: expected a compressed string, "
            f"or run lengths that add up to {height * width}"
        )
    compressed = mask_util.frPyObjects({"size": size, "counts": counts}, height, width)
    return {"size": size, "counts": compressed["counts"].decode("ascii")}


def _box(json_file: Path, name: str, entry: dict[str, Any], segmentation: Any, skipped: Counter[str]) -> list[float] | None:
    """XYWH in pixels, computed from the mask where the file gives none; None, and counted, if it has no area."""
    box = entry.get("bbox")
    if box is None:
        box = _box_of(segmentation)
    if not isinstance(box, list) or len(box) != 4 or not _finite(box):
        raise DatasetError(f"{json_file}: {name}, field bbox: {box!r}; expected [x, y, width, height]")
    if box[2] <= 0 or box[3] <= 0:
        skipped["annotations with a box without area"] += 1
        return None
    return box


def _box_of(segmentation: Any) -> list[float]:
    if isinstance(segmentation, dict):
        return mask_util.toBbox(segmentation).tolist()
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]
