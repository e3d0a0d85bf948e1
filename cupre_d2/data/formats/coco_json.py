"""COCO's instances JSON, read with the checks that Detectron2's own reader leaves to a crash during training."""

import json
import logging
import math
import os
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import msgspec

from cupre_d2.data.formats.coco_arrays import LARGEST, MIN_POLYGON, CocoArrays, Image, parse
from cupre_d2.data.formats.coco_cache import cached
from cupre_d2.data.formats.rle import check_rle
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

# Characters of a value, and of a path, that an error shows.
_SHOWN, _SHOWN_PATH = 80, 500
# Categories that an error lists.
_LISTED = 20


def load_coco_json(
    json_file: Path, image_root: Path, locate: Callable[[Path, str], Path] = Path.joinpath
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Reads a COCO instances file.

    Polygons stay polygons, each a float64 array x, y, x, y, ...; RLE stays RLE (compressed, counts as str). An annotation
    has the "area" that the file states, if any, which COCO's evaluation goes by, and "iscrowd" where it is 1. An image
    without annotations keeps an empty list; its "cell_type", if any, becomes the record's. Annotations without a mask or
    with a degenerate one (a polygon of fewer than three points, an RLE without a pixel, a box without area) are left
    out, counted and logged. A big file is parsed once and then read from a cache (see `coco_cache`).

    Args:
        json_file: the annotations.
        image_root: the folder that the file names in it are relative to.
        locate: finds an image given image_root and its file name, for sets whose folders differ from the JSON.

    Returns:
        The records, in the file's order, category ids 0-based in order of the file's ids; and the categories, id in the
        file to name, in that order.

    Raises:
        DatasetError: a file or folder is missing, the file is no JSON or not COCO's, has no image or no category, an
            annotation's image or category is unknown, a mask, box or area is malformed, or an image is not on disk or lies
            outside image_root.
    """

    def use(parsed: CocoArrays) -> tuple[CocoArrays, list[dict[str, Any]]]:
        if not image_root.is_dir():
            raise DatasetError(f"{image_root}: no such folder; expected the images of {json_file}")
        return parsed, parsed.records(_files(json_file, parsed.images, image_root.absolute(), locate))

    try:
        with json_file.open("rb") as stream:
            parsed, records = cached(json_file, stream, _parse, use)
    except FileNotFoundError as error:
        raise DatasetError(f"{json_file}: no such file; expected COCO's instances JSON") from error
    except OSError as error:
        raise DatasetError(f"{json_file}: cannot be read ({error.strerror})") from error
    if parsed.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in parsed.skipped.items())
        logger.warning("%s: left out %s (of %d annotations)", json_file, reasons, parsed.total)
    if parsed.repeated:
        logger.warning("%s: %d of %d annotations have the id of another", json_file, parsed.repeated, parsed.total)
    return records, parsed.categories


def _files(json_file: Path, images: Sequence[Image], image_root: Path, locate: Callable[[Path, str], Path]) -> list[Path]:
    """Where the images are; all of them must be there, below image_root."""
    files, missing = [], []
    # A question a file takes minutes on network file systems.
    listed = cache(_list_files)
    for image in images:
        path = PurePath(image.file_name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in image.file_name:
            name = f"image {_shown(image.id)}, field file_name: {_shown(image.file_name, _SHOWN_PATH)}"
            raise DatasetError(f"{json_file}: {name}; expected a path below {image_root}")
        file = image_root / path
        try:
            file = locate(image_root, image.file_name)
            # What is not in the list may be there all the same, where upper and lower case are one.
            found = file.name in listed(file.parent) or file.is_file()
        # A name that is too long, or that the file system cannot spell; a folder that may not be searched.
        except (OSError, ValueError):
            found = False
        if found:
            files.append(file)
        else:
            missing.append((image.id, file))
    if missing:
        name = f"image {_shown(missing[0][0])}, field file_name: {_shown(str(missing[0][1]), _SHOWN_PATH)}"
        raise DatasetError(f"{json_file}: {name} is not on disk ({len(missing)} of {len(images)} images are not)")
    return files


def _list_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _parse(json_file: Path, content: Any) -> CocoArrays:
    """The fast way says only that something is wrong; the slow one says what."""
    return parse(content) or _explain(json_file, bytes(content))


def _explain(json_file: Path, content: bytes) -> CocoArrays:
    """Parses a file that is unusual but sound (UTF-16, a mask that is `false`, ...), else says what is wrong.

    Raises:
        DatasetError: names the record, the field and what was expected.
    """
    try:
        parsed = parse(msgspec.json.encode(_Checker(json_file).checked(_read(json_file, content))))
    except RecursionError as error:
        raise DatasetError(f"{json_file}: is nested too deeply; expected COCO's instances format") from error
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise DatasetError(f"{json_file}: cannot be used ({' '.join(str(error).split())})") from error
    if parsed is None:
        raise DatasetError(f"{json_file}: cannot be used; expected COCO's instances format")
    return parsed


def _read(json_file: Path, content: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(content, object_pairs_hook=_unique)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{json_file}: is no JSON ({reason}); expected COCO's instances format") from error
    if not isinstance(decoded, dict):
        raise DatasetError(f"{json_file}: expected an object with images, annotations and categories")
    return decoded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The first of two lists of annotations would be lost without a word."""
    decoded = dict(pairs)
    if len(decoded) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {_shown(repeated)} is there twice in an object")
    return decoded


class _Checker:
    """Checks, and what to call the file they are about."""

    def __init__(self, json_file: Path) -> None:
        self.file = json_file

    def checked(self, content: dict[str, Any]) -> dict[str, Any]:
        """The fields that count, all of them sound."""
        categories, images = self.categories(content), self.images(content)
        entries = enumerate(self.entries(content, "annotations"))
        return {
            "categories": [{"id": category, "name": name} for category, name in categories.items()],
            "images": list(images.values()),
            "annotations": [self.annotation(index, entry, categories, images) for index, entry in entries],
        }

    def error(self, record: str, message: str) -> DatasetError:
        return DatasetError(f"{self.file}: {record}, {message}" if record else f"{self.file}: {message}")

    def entries(self, content: dict[str, Any], field: str) -> list[dict[str, Any]]:
        entries = content.get(field)
        if not isinstance(entries, list):
            found = _shown(entries) if field in content else "missing"
            raise self.error("", f"field {field}: {found}; expected a list of objects")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise self.error("", f"field {field}: number {index} is {_shown(entry)}; expected a list of objects")
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
            if not 0 < min(size.values()) <= max(size.values()) <= LARGEST:
                raise self.error(name, f"fields height and width: {size}; expected positive numbers, at most {LARGEST}")
            cell_type = entry.get("cell_type")
            images[image_id] = {"id": image_id, "file_name": file_name, **size, "cell_type": cell_type and str(cell_type)}
        if not images:
            raise self.error("", "field images: empty; expected at least one image")
        return images

    def annotation(
        self, index: int, entry: dict[str, Any], categories: dict[int, str], images: dict[Hashable, dict[str, Any]]
    ) -> dict[str, Any]:
        name = f"annotation {_shown_id(entry['id'])}" if "id" in entry else f"annotation number {index}, without id"
        image = images.get(self.field(name, entry, "image_id", int, str))
        if image is None:
            raise self.error(name, f"field image_id: {_shown(entry['image_id'])}; expected the id of an image in the file")
        category = self.field(name, entry, "category_id", int)
        if category not in categories:
            listed = ", ".join(map(str, sorted(categories)[:_LISTED])) + (", ..." if len(categories) > _LISTED else "")
            raise self.error(name, f"field category_id: {_shown(category)}; expected one of {listed}")
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise self.error(name, f"field iscrowd: {_shown(crowd)}; expected 0 or 1")
        return {
            **({"id": repr(entry["id"])} if "id" in entry else {}),
            "image_id": image["id"],
            "category_id": category,
            "segmentation": self.segmentation(name, entry.get("segmentation"), image),
            "bbox": self.box(name, entry.get("bbox")),
            "area": self.area(name, entry.get("area")),
            "iscrowd": int(crowd),
        }

    def segmentation(self, name: str, segmentation: Any, image: dict[str, Any]) -> Any:
        if not segmentation:
            return None
        if isinstance(segmentation, dict):
            try:
                counts, _ = check_rle(segmentation, image["height"], image["width"])
            except ValueError as error:
                raise self.error(name, str(error)) from error
            return {"size": [image["height"], image["width"]], "counts": counts}
        if not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)):
            raise self.error(name, "field segmentation: expected a list of polygons [x, y, x, y, ...] or an RLE")
        for polygon in segmentation:
            if len(polygon) >= MIN_POLYGON and _largest(polygon) > LARGEST:
                raise self.error(name, f"field segmentation: {_largest(polygon):g}; expected at most {LARGEST} pixels")
        return segmentation

    def box(self, name: str, box: Any) -> Any:
        if box is not None and (not isinstance(box, list) or len(box) != 4 or not _finite(box)):
            raise self.error(name, f"field bbox: {_shown(box)}; expected [x, y, width, height]")
        if box and _largest(box) > LARGEST:
            raise self.error(name, f"field bbox: {_shown(box)}; expected at most {LARGEST} pixels")
        return box

    def area(self, name: str, area: Any) -> Any:
        if area is not None and (not _finite([area]) or area < 0):
            raise self.error(name, f"field area: {_shown(area)}; expected square pixels, a number from 0 on")
        return area


def _shown(value: Any, characters: int = _SHOWN) -> str:
    """A value as an error shows it: in one line, and short."""
    text = repr(value)
    return text if len(text) <= characters else f"{text[:characters]}..."


def _shown_id(value: Any) -> str:
    return str(value) if isinstance(value, str) and value.isprintable() and len(value) <= _SHOWN else _shown(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and _finite(polygon)


def _finite(numbers: list[Any]) -> bool:
    try:
        return all(math.isfinite(number) for number in numbers) and not any(isinstance(number, bool) for number in numbers)
    except (TypeError, OverflowError):
        return False


def _largest(numbers: list[float]) -> float:
    return max(map(abs, numbers))
