"""The instances of one image: masks, boxes, and how they lie on each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from pycocotools import mask as mask_util

from cupre_d2.data.check.contents import Contents, ImageEntry
from cupre_d2.data.check.findings import Collector
from cupre_d2.data.check.masks import read_area, read_box, read_mask

# Share of the smaller instance that another one may cover.
OVERLAP = 0.5
# Intersection over union from which two masks are one instance annotated twice. Not higher: contours of a cell of 16
# pixels that are one pixel apart have 0.85.
DOUBLE = 0.8


@dataclass
class Instance:
    """An instance with pixels; annotation is its position in the source, extent x0, y0, x1, y1 and area in pixels."""

    annotation: int
    name: str
    category: int
    rle: dict[str, Any]
    extent: list[float]
    area: int


# Coordinates can be absurd.
@np.errstate(all="ignore")
def check_image(contents: Contents, index: int, size: tuple[int, int], overlap: float, collector: Collector) -> None:
    """Reports on the instances of the image at that position; `size` is its height and width in pixels."""
    image = contents.images[index]
    instances = []
    for number, position in enumerate(image.annotations or ()):
        instance = _check_annotation(contents, index, number, position, size, collector)
        if instance:
            instances.append(instance)
    for kind, one, other, share in _find_overlaps(instances, overlap):
        if kind == "double contour":
            message = f"the same instance as {other.name}: intersection over union {share:.2f}"
        else:
            message = f"and {other.name} share {share:.0%} of the smaller one"
        collector.add(kind, f"{image.name}, {one.name}", message, index, one.annotation, image.listed_in)


def _check_annotation(
    contents: Contents, index: int, number: int, position: int, size: tuple[int, int], collector: Collector
) -> Instance | None:
    image = contents.images[index]
    try:
        annotation = contents.annotation(position)
    except (ValueError, RecursionError) as error:
        message = f"is no JSON ({error})"
        collector.add("unusable entry", f"{image.name}, annotation number {position}", message, index, position)
        return None
    name = _name(image, annotation, number)
    mask = read_mask(annotation.get("segmentation"), *size)
    of_box = read_box(annotation.get("bbox"), mask.extent, *size)
    for kind, message in (*mask.problems, *of_box, *read_area(annotation.get("area"))):
        collector.add(kind, f"{image.name}, {name}", message, index, position, image.listed_in)
    if mask.rle is None or mask.extent is None or annotation.get("iscrowd"):
        return None
    return Instance(position, name, annotation["category_id"], mask.rle, mask.extent, mask.area)


def _name(image: ImageEntry, annotation: dict[str, Any], number: int) -> str:
    identity = annotation.get("id")
    return f"annotation number {number}" if identity is None else f"annotation {identity}"


def _find_overlaps(instances: list[Instance], overlap: float) -> Iterator[tuple[str, Instance, Instance, float]]:
    """Pairs of one category that share pixels: kind, the smaller, the larger, and the share that tells.

    Several categories are apart, as a nucleus lies in its cell. What is a double of a double is left to the first.
    """
    doubles: set[int] = set()
    # The largest first, and of equal ones the first in the file.
    ordered = sorted(instances, key=lambda instance: (-instance.area, instance.annotation))
    areas = np.array([instance.area for instance in ordered], np.float64)
    for larger, smaller in _candidates(ordered, areas, overlap):
        if larger in doubles:
            continue
        smaller = np.array([one for one in smaller if one not in doubles], np.int64)
        rles = [ordered[one].rle for one in smaller]
        ious = mask_util.iou([ordered[larger].rle], rles, [0] * len(rles))[0] if rles else np.empty(0)
        shares = ious / (1 + ious) * (areas[larger] + areas[smaller]) / areas[smaller]
        for one, iou, share in zip(smaller.tolist(), ious.tolist(), shares.tolist(), strict=True):
            if iou >= DOUBLE:
                doubles.add(one)
                yield "double contour", ordered[one], ordered[larger], iou
            elif share > overlap:
                yield "overlap", ordered[one], ordered[larger], share


def _candidates(ordered: list[Instance], areas: np.ndarray, overlap: float) -> Iterator[tuple[int, np.ndarray]]:
    """Each instance, and those behind it whose boxes leave room for an overlap; the few for which masks are compared."""
    if not ordered:
        return
    extents = np.array([instance.extent for instance in ordered])
    # Whole pixels.
    low, high = np.floor(extents[:, :2]), np.ceil(extents[:, 2:])
    boxes = shapely.box(*low.T, *high.T)
    one, other = shapely.STRtree(boxes).query(boxes)
    categories = np.array([instance.category for instance in ordered])
    behind = (one < other) & (categories[one] == categories[other])
    one, other = one[behind], other[behind]
    shared = (np.minimum(high[one], high[other]) - np.maximum(low[one], low[other])).prod(axis=1)
    enough = shared >= min(overlap, DOUBLE) * areas[other]
    one, other = one[enough], other[enough]
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    for first in np.unique(one).tolist():
        yield first, other[slice(*np.searchsorted(one, (first, first + 1)))]
