"""What is wrong with a COCO instances file: the slow reading of a file that the fast one did not understand."""

import json
import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import msgspec

from cupre_d2.data.formats.coco_arrays import CocoArrays, parse
from cupre_d2.data.formats.coco_rle import compress_rle
from cupre_d2.errors import DatasetError

# Characters of a value that an error shows.
_SHOWN = 80


def explain(json_file: Path, content: bytes) -> CocoArrays:
    """Parses a file that is unusual but sound (UTF-16, a mask that is `false`, ...), else says what is wrong.

    Raises:
        DatasetError: names the record, the field and what was expected.
    """
    checked = _check(json_file, _read(json_file, content))
    try:
        parsed = parse(msgspec.json.encode(checked))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{json_file}: cannot be used ({' '.join(str(error).split())})") from error
    if parsed is None:
        raise DatasetError(f"{json_file}: numbers too large to be used; expected pixels")
    return parsed


def _read(json_file: Path, content: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{json_file}: is no JSON ({reason}); expected COCO's instances format") from error
    if not isinstance(decoded, dict):
        raise DatasetError(f"{json_file}: expected an object with images, annotations and categories")
    return decoded


def _check(json_file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The fields that count, all of them sound."""
    checker = _Checker(json_file)
    categories = checker.categories(content)
    images = checker.images(content)
    return {
        "categories": [{"id": category, "name": name} for category, name in categories.items()],
        "images": list(images.values()),
        "annotations": [checker.annotation(entry, categories, images) for entry in checker.entries(content, "annotations")],
    }


class _Checker:
    """Checks, and what to call the file they are about."""

    def __init__(self, json_file: Path) -> None:
        self.file = json_file

    def error(self, record: str, message: str) -> DatasetError:
        return DatasetError(f"{self.file}: {record}, {message}" if record else f"{self.file}: {message}")

    def entries(self, content: dict[str, Any], field: str) -> list[dict[str, Any]]:
        entries = content.get(field)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.error("", f"field {field}: expected a list of objects")
        return entries

    def field(self, record: str, entry: dict[str, Any], field: str, *kinds: type) -> Any:
        value = entry.get(field)
        if not isinstance(value, kinds) or isinstance(value, bool):
            found = _shown(value) if field in entry else "missing"
            raise self.error(record, f"field {field}: {found}; expected {' or '.join(kind.__name__ for kind in kinds)}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise self.error(record, f"field {field}: {_shown(value)}; expected a number of at most 63 bits")
        if isinstance(value, str) and not _is_text(value):
            raise self.error(record, f"field {field}: {_shown(value)}; expected text in Unicode")
        return value

    def categories(self, content: dict[str, Any]) -> dict[int, str]:
        categories: dict[int, str] = {}
        for index, entry in enumerate(self.entries(content, "categories")):
            category = self.field(f"category number {index}", entry, "id", int)
            if category in categories:
                raise self.error(f"category {category}", "field id: used twice; expected unique ids")
            categories[category] = self.field(f"category {category}", entry, "name", str)
        if not categories:
            raise self.error("", "field categories: empty; expected at least one category")
        return categories

    def images(self, content: dict[str, Any]) -> dict[Hashable, dict[str, Any]]:
        images: dict[Hashable, dict[str, Any]] = {}
        for index, entry in enumerate(self.entries(content, "images")):
            image_id = self.field(f"image number {index}", entry, "id", int, str)
            name = f"image {_shown_id(image_id)}"
            if image_id in images:
                raise self.error(name, "field id: used twice; expected unique ids")
            file_name = self.field(name, entry, "file_name", str)
            size = {field: self.field(name, entry, field, int) for field in ("height", "width")}
            if min(size.values()) < 1:
                raise self.error(name, f"fields height and width: {size}; expected positive numbers")
            images[image_id] = {"id": image_id, "file_name": file_name, **size}
        if not images:
            raise self.error("", "field images: empty; expected at least one image")
        return images

    def annotation(
        self, entry: dict[str, Any], categories: dict[int, str], images: dict[Hashable, dict[str, Any]]
    ) -> dict[str, Any]:
        name = f"annotation {_shown_id(entry['id'])}" if "id" in entry else "annotation without id"
        image = images.get(self.field(name, entry, "image_id", int, str))
        if image is None:
            raise self.error(name, f"field image_id: {_shown(entry['image_id'])}; expected the id of an image in the file")
        category = self.field(name, entry, "category_id", int)
        if category not in categories:
            expected = ", ".join(map(str, sorted(categories)))
            raise self.error(name, f"field category_id: {_shown(category)}; expected one of {expected}")
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise self.error(name, f"field iscrowd: {_shown(crowd)}; expected 0 or 1")
        return {
            "image_id": image["id"],
            "category_id": category,
            "segmentation": self.segmentation(name, entry.get("segmentation"), image),
            "bbox": self.box(name, entry.get("bbox")),
            "iscrowd": int(crowd),
        }

    def segmentation(self, name: str, segmentation: Any, image: dict[str, Any]) -> Any:
        if not segmentation:
            return None
        if isinstance(segmentation, dict):
            try:
                counts = compress_rle(segmentation, image["height"], image["width"])
            except ValueError as error:
                raise self.error(name, str(error)) from error
            return {"size": [image["height"], image["width"]], "counts": counts}
        if not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)):
            raise self.error(name, "field segmentation: expected a list of polygons [x, y, x, y, ...] or an RLE")
        return segmentation

    def box(self, name: str, box: Any) -> Any:
        if box is not None and (not isinstance(box, list) or len(box) != 4 or not _finite(box)):
            raise self.error(name, f"field bbox: {_shown(box)}; expected [x, y, width, height]")
        return box


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _shown_id(value: Any) -> str:
    return str(value) if isinstance(value, str) and value.isprintable() and len(value) <= _SHOWN else _shown(value)


def _is_text(value: str) -> bool:
    try:
        return bool(value.encode()) or True
    except UnicodeEncodeError:
        return False


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and _finite(polygon)


def _finite(numbers: list[Any]) -> bool:
    try:
        return all(math.isfinite(number) for number in numbers) and not any(isinstance(number, bool) for number in numbers)
    except (TypeError, OverflowError):
        return False
