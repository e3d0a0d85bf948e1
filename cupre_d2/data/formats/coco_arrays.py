"""COCO's instances as flat arrays: what a big file is parsed into, kept in a cache, and made records of.

LIVECell's million polygons as Python lists of floats take more than ten times the memory of the numbers.
"""

import gc
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from detectron2.structures import BoxMode

from cupre_d2.data.formats.rle import box_of_runs, check_rle

# x, y of three points.
MIN_POLYGON = 6
# Pixels that a coordinate may be from the origin; what draws polygons takes time and memory in proportion.
LARGEST = 1_000_000

NO_MASK = "annotations without a mask"
EMPTY_MASK = "annotations with an empty mask"
DEGENERATE = "annotations with only degenerate polygons"
DEGENERATE_PARTS = "degenerate parts of annotations with several polygons"
NO_AREA = "annotations with a box without area"


class _Category(msgspec.Struct):
    id: int
    name: str


class Image(msgspec.Struct):
    """An image of the file, as the file has it."""

    id: int | str
    file_name: str
    height: int
    width: int
    # None or empty where it says none.
    cell_type: Any = None

    def record(self, file: Path, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        """Detectron2's."""
        record = {"file_name": str(file), "image_id": self.id, "height": self.height, "width": self.width}
        if self.cell_type:
            record["cell_type"] = str(self.cell_type)
        return record | {"annotations": annotations}


class _Annotation(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int
    id: msgspec.Raw = msgspec.Raw()
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    bbox: tuple[float, float, float, float] | None = None
    area: float | None = None
    iscrowd: int = 0


class _File(msgspec.Struct):
    images: list[Image]
    annotations: list[_Annotation]
    categories: list[_Category]


_decode_file = msgspec.json.Decoder(_File).decode
_decode_polygons = msgspec.json.Decoder(list[list[float]]).decode


_INTS = ("per_image", "category", "crowd", "parts", "part_length", "rle_length")
# The arrays of CocoArrays.
ARRAYS: dict[str, type] = {
    **dict.fromkeys(_INTS, np.int64),
    **dict.fromkeys(("box", "area", "coordinates"), np.float64),
    "rle": np.uint8,
}

# Of two values of a key JSON's readers keep the last one.
_KEYS = re.compile(rb'"(?:images|annotations|categories)"\s*:')


@dataclass(frozen=True)
class CocoArrays:
    """A whole COCO instances file.

    Attributes:
        images: in the file's order.
        categories: id in the file to name, by id.
        skipped: what was left out, and how often.
        total: annotations in the file. repeated: how many of them have the id of an earlier one.
        per_image: I int64, how many of the N annotations that were kept each image has; they are in order of image.
        category: N int64, from 0. crowd: N int64, 0 or 1. box: 4N float64, XYWH in pixels.
        area: N float64, square pixels; NaN where the file states none.
        parts: N int64, polygons of each annotation; 0 for an RLE.
        part_length: P int64, numbers of each polygon. coordinates: float64, x y x y ...
        rle_length: R int64. rle: uint8, the counts of all RLEs, compressed.
    """

    images: list[Image]
    categories: dict[int, str]
    skipped: dict[str, int]
    total: int
    repeated: int
    per_image: np.ndarray
    category: np.ndarray
    crowd: np.ndarray
    box: np.ndarray
    area: np.ndarray
    parts: np.ndarray
    part_length: np.ndarray
    coordinates: np.ndarray
    rle_length: np.ndarray
    rle: np.ndarray

    def records(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        """Detectron2's records; a polygon is a float64 view, x y x y ..., of all coordinates."""
        # Image by image, as what was just made is still in the processor's cache.
        with _no_collection():
            return [
                image.record(file, annotations)
                for file, image, annotations in zip(files, self.images, self._annotations(), strict=True)
            ]

    def _annotations(self) -> Iterator[list[dict[str, Any]]]:
        """Those of each image."""
        ends = np.cumsum(self.per_image).tolist()
        segmentations = self._segmentations([0, *ends])
        box, mode = self.box.reshape(-1, 4), BoxMode.XYWH_ABS
        for start, end in zip([0, *ends], ends, strict=False):
            boxes, categories, areas = (column[start:end].tolist() for column in (box, self.category, self.area))
            # A dict of six keys takes a half more than one of five: "iscrowd", whose default is 0, only where it is 1.
            annotations: list[dict[str, Any]] = [
                {"bbox": box, "bbox_mode": mode, "segmentation": segmentation, "category_id": category, "area": area}
                for box, segmentation, category, area in zip(boxes, next(segmentations), categories, areas, strict=True)
            ]
            for index in np.flatnonzero(self.crowd[start:end]):
                annotations[index]["iscrowd"] = 1
            for index in np.flatnonzero(np.isnan(self.area[start:end])):
                del annotations[index]["area"]
            yield annotations

    def _segmentations(self, borders: list[int]) -> Iterator[list[Any]]:
        """Polygons or RLE of the annotations between two borders."""
        part_ends = np.concatenate([[0], np.cumsum(self.parts)])
        ends = np.concatenate([[0], np.cumsum(self.part_length)])
        coordinates, rles = self.coordinates, self._rles()
        for start, end in zip(borders[:-1], borders[1:], strict=True):
            numbers = ends[part_ends[start] : part_ends[end] + 1].tolist()
            polygons = [coordinates[first:last] for first, last in zip(numbers, numbers[1:], strict=False)]
            parts = self.parts[start:end]
            if (parts == 1).all():
                yield [[polygon] for polygon in polygons]
            else:
                taken = iter(polygons)
                yield [list(islice(taken, count)) if count else next(rles) for count in parts.tolist()]

    def _rles(self) -> Iterator[dict[str, Any]]:
        text, position = self.rle.tobytes().decode("ascii"), 0
        image_of = np.repeat(np.arange(len(self.images)), self.per_image)[self.parts == 0]
        for number, length in zip(image_of.tolist(), self.rle_length.tolist(), strict=True):
            size = [self.images[number].height, self.images[number].width]
            yield {"size": size, "counts": text[position : position + length]}
            position += length

    def is_consistent(self) -> bool:
        """Whether the arrays fit together, as those of a foreign cache might not."""
        count = len(self.category)
        return bool(
            len(self.per_image) == len(self.images) > 0
            and all((getattr(self, name) >= 0).all() for name in _INTS)
            and self.per_image.sum() == count == len(self.crowd) == len(self.parts)
            and len(self.box) == 4 * len(self.area) == 4 * count
            and not (self.area < 0).any()
            and (self.category < len(self.categories)).all()
            and self.parts.sum() == len(self.part_length)
            and self.part_length.sum() == len(self.coordinates)
            and (self.parts == 0).sum() == len(self.rle_length)
            and self.rle_length.sum() == len(self.rle)
            and (self.rle < 128).all()
        )


@contextmanager
def _no_collection() -> Iterator[None]:
    """A million dicts make the garbage collector look through all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            # Into the oldest generation at once, past the collection that would be due: it takes as long as all the rest.
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def parse(content: Any) -> CocoArrays | None:
    """Parses a COCO instances file; None where anything is wrong with it, which `coco_json` then tells.

    Args:
        content: the file's bytes, or a map of them.
    """
    try:
        with _no_collection():
            return _parse(content)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def _parse(content: Any) -> CocoArrays:
    _expect(len(_KEYS.findall(content)) == len(_File.__struct_fields__))
    file = _decode_file(content)
    categories = {category.id: category.name for category in file.categories}
    _expect(0 < len(categories) == len(file.categories))
    categories = dict(sorted(categories.items()))
    index = {image.id: number for number, image in enumerate(file.images)}
    _expect(0 < len(index) == len(file.images))
    _expect(all(0 < image.height <= LARGEST and 0 < image.width <= LARGEST for image in file.images))
    ordered: list[list[_Annotation]] = [[] for _ in file.images]
    for annotation in file.annotations:
        number = index.get(annotation.image_id)
        if number is None:
            raise ValueError
        ordered[number].append(annotation)
    ids = np.fromiter((hash(text) for annotation in file.annotations if (text := bytes(annotation.id))), np.int64)
    total, repeated = len(file.annotations), len(ids) - len(np.unique(ids))
    file.annotations.clear()
    return _Collector(categories, file.images).collect(ordered, total, repeated)


def _expect(holds: bool) -> None:
    if not holds:
        raise ValueError


def _pixels(values: array) -> np.ndarray:
    pixels = np.frombuffer(values)
    _expect(not len(pixels) or max(pixels.max(), -pixels.min()) <= LARGEST)
    return pixels


class _Collector:
    """Takes annotations one by one; each is forgotten when its numbers are in the arrays."""

    def __init__(self, categories: dict[int, str], images: list[Image]) -> None:
        self.images = images
        self.categories = categories
        self.contiguous = {category: number for number, category in enumerate(categories)}
        self.skipped: Counter[str] = Counter()
        self.ints = {name: array("q") for name in _INTS}
        self.box, self.area, self.coordinates, self.rle = array("d"), array("d"), array("d"), bytearray()

    def collect(self, grouped: list[list[_Annotation]], total: int, repeated: int) -> CocoArrays:
        for image, annotations in zip(self.images, grouped, strict=True):
            before = len(self.ints["category"])
            for annotation in annotations:
                self._add(annotation, image)
            annotations.clear()
            self.ints["per_image"].append(len(self.ints["category"]) - before)
        area = np.frombuffer(self.area)
        _expect(not (area < 0).any())
        return CocoArrays(
            images=self.images,
            categories=self.categories,
            skipped=dict(self.skipped),
            total=total,
            repeated=repeated,
            box=_pixels(self.box),
            area=area,
            coordinates=_pixels(self.coordinates),
            rle=np.frombuffer(self.rle, np.uint8),
            **{name: np.frombuffer(values, np.int64) for name, values in self.ints.items()},
        )

    def _add(self, annotation: _Annotation, image: Image) -> None:
        category = self.contiguous.get(annotation.category_id)
        if category is None or annotation.iscrowd not in (0, 1):
            raise ValueError
        raw = bytes(annotation.segmentation)
        if raw.startswith(b"{"):
            box = self._rle(msgspec.json.decode(raw), annotation.bbox, image)
        elif raw.startswith(b"["):
            box = self._polygons(_decode_polygons(raw), annotation.bbox)
        elif raw == b"null":
            return self._skip(NO_MASK)
        else:
            raise ValueError
        if box:
            self.ints["category"].append(category)
            self.ints["crowd"].append(annotation.iscrowd)
            self.box.extend(box)
            self.area.append(math.nan if annotation.area is None else annotation.area)

    def _skip(self, reason: str, count: int = 1) -> None:
        self.skipped[reason] += count

    def _polygons(self, polygons: list[list[float]], box: Any) -> Any:
        """The box of an annotation that is kept; None, and counted, for one that is not."""
        if not polygons:
            return self._skip(NO_MASK)
        _expect(all(len(polygon) % 2 == 0 for polygon in polygons))
        whole = [polygon for polygon in polygons if len(polygon) >= MIN_POLYGON]
        if not whole:
            return self._skip(DEGENERATE)
        if len(whole) < len(polygons):
            self._skip(DEGENERATE_PARTS, len(polygons) - len(whole))
        box = box or box_of(whole)
        if box[2] <= 0 or box[3] <= 0:
            return self._skip(NO_AREA)
        for polygon in whole:
            self.coordinates.extend(polygon)
            self.ints["part_length"].append(len(polygon))
        self.ints["parts"].append(len(whole))
        return box

    def _rle(self, rle: dict[str, Any], box: Any, image: Image) -> Any:
        if not rle:
            return self._skip(NO_MASK)
        counts, lengths = check_rle(rle, image.height, image.width)
        if not lengths[1::2].any():
            return self._skip(EMPTY_MASK)
        box = box or box_of_runs(lengths, image.height)
        if box[2] <= 0 or box[3] <= 0:
            return self._skip(NO_AREA)
        self.rle += counts.encode()
        self.ints["rle_length"].append(len(counts))
        self.ints["parts"].append(0)
        return box


def box_of(polygons: Sequence[Sequence[float]]) -> list[float]:
    """XYWH in pixels of the points of polygons."""
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
