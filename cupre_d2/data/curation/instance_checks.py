"""The instances of one image: masks, boxes, areas, and how they lie on each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from pycocotools import mask as mask_util

from cupre_d2.data.curation.contents import Contents
from cupre_d2.data.curation.findings import Collector
from cupre_d2.data.formats.rle import box_of_runs, check_rle

# Share of the smaller instance that another one may cover.
OVERLAP = 0.5
# Intersection over union from which two masks are one instance annotated twice. Not higher: contours of a cell of 16
# pixels that are one pixel apart have 0.85.
DOUBLE = 0.8
# Pixels beyond the image that rounding explains.
OUTSIDE = 1.0
# Pixels between an edge of the box and the mask's: annotation tools differ by one in what they take as the edge.
BOX_TOLERANCE = 2.0

Problem = tuple[str, str]
_NO_PIXEL: Problem = ("empty mask", "field segmentation: not a pixel in the image")


@dataclass
class Instance:
    """An instance with pixels; annotation is its position in the split, extent x0, y0, x1, y1 and area in pixels."""

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
    name = f"annotation number {number}" if annotation.get("id") is None else f"annotation {annotation['id']}"
    mask = read_mask(annotation.get("segmentation"), *size)
    of_box = read_box(annotation.get("bbox"), mask.extent, *size)
    for kind, message in (*mask.problems, *of_box, *read_area(annotation.get("area"))):
        collector.add(kind, f"{image.name}, {name}", message, index, position, image.listed_in)
    if mask.rle is None or mask.extent is None or annotation.get("iscrowd"):
        return None
    return Instance(position, name, annotation["category_id"], mask.rle, mask.extent, mask.area)


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


@dataclass
class Mask:
    """What became of a segmentation.

    Attributes:
        rle: compressed, within the image; None if not a pixel is left.
        area: in pixels.
        extent: x0, y0, x1, y1 in pixels, within the image; None as rle.
        problems: kind and message.
    """

    rle: dict[str, Any] | None = None
    area: int = 0
    extent: list[float] | None = None
    problems: list[Problem] = field(default_factory=list)


def read_mask(segmentation: Any, height: int, width: int) -> Mask:
    """The mask of a segmentation, polygons or RLE, in an image of that size in pixels."""
    if segmentation is None or (isinstance(segmentation, list | Mapping) and not segmentation):
        return Mask(problems=[("empty mask", "field segmentation: missing; expected polygons or an RLE")])
    if isinstance(segmentation, Mapping):
        return _read_rle(segmentation, height, width)
    parts = [points_of(part) for part in segmentation] if isinstance(segmentation, list) else [None]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        message = "field segmentation: expected polygons, each a list x, y, x, y, ... of numbers, or an RLE"
        return Mask(problems=[("malformed mask", message)])
    return _draw(whole, height, width)


def read_box(box: Any, extent: list[float] | None, height: int, width: int) -> Iterator[Problem]:
    """What is wrong with an XYWH box, given the extent of its mask. None, for no box, is well: readers make one."""
    if box is None:
        return
    numbers = _numbers(box)
    if numbers is None or len(numbers) != 4:
        yield "malformed box", f"field bbox: {box!r}; expected [x, y, width, height]"
        return
    x, y, box_width, box_height = numbers.tolist()
    if box_width <= 0 or box_height <= 0:
        yield "box without area", f"field bbox: {_shown(box)}"
        return
    corners = [x, y, x + box_width, y + box_height]
    inside = [min(max(corner, 0), side) for corner, side in zip(corners, (width, height, width, height), strict=True)]
    if _distance(corners, inside) > OUTSIDE:
        yield "box outside the image", f"field bbox: {_shown(box)}; expected it within {width}x{height} pixels"
    elif extent is not None and _distance(inside, extent) > BOX_TOLERANCE:
        yield "box contradicts mask", f"field bbox: {_shown(box)}; expected {_shown(to_box(extent))}, that of its mask"


def read_area(area: Any) -> Iterator[Problem]:
    """What is wrong with a stated area. None is well: readers take the mask's."""
    if area is None:
        return
    numbers = _numbers([area])
    if isinstance(area, bool) or numbers is None or numbers[0] < 0:
        yield "malformed area", f"field area: {area!r}; expected square pixels, a number from 0 on"


def to_box(extent: Sequence[float]) -> list[float]:
    """XYWH of x0, y0, x1, y1."""
    x0, y0, x1, y1 = extent
    return [x0, y0, x1 - x0, y1 - y0]


def points_of(part: Any) -> np.ndarray | None:
    """A polygon as Nx2 array x, y; None if it is no list of pairs of numbers."""
    numbers = _numbers(part)
    return None if numbers is None or len(numbers) % 2 else numbers.reshape(-1, 2)


def is_degenerate(points: np.ndarray) -> bool:
    """Fewer than three points, or all on one line."""
    if len(points) < 3:
        return True
    x, y = (points - points[0]).T
    area = x[1:] @ y[:-1] - y[1:] @ x[:-1]
    # A figure of eight encloses pixels too, but its signed area may be 0.
    return abs(area) < 1e-9 and bool(np.linalg.matrix_rank(points - points[0]) < 2)


def clip(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The part of a polygon, Nx2, that is within the image (Sutherland and Hodgman); without points if there is none.

    Where shapely needs simple polygons, this keeps the pixels of those that cross themselves.
    """
    for axis, bound, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        depth = sign * (points[:, axis] - bound)
        following, next_depth = np.roll(points, -1, axis=0), np.roll(depth, -1)
        crosses = (depth >= 0) != (next_depth >= 0)
        crossing = points + (following - points) * (depth / (depth - next_depth))[:, None]
        crossing[:, axis] = bound
        both = np.stack([points, crossing], axis=1).reshape(-1, 2)
        points = both[np.stack([depth >= 0, crosses], axis=1).ravel()]
    return points


def is_outside(points: np.ndarray, height: int, width: int) -> bool:
    return bool(points.min() < -OUTSIDE or (points.max(axis=0) > np.add((width, height), OUTSIDE)).any())


def _numbers(values: Any) -> np.ndarray | None:
    """float64 array of a list of finite numbers; None if it is none."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64, copy=False) if np.isfinite(values).all() else None
    if not isinstance(values, list):
        return None
    try:
        # Text, lists and None cannot be added, so this refuses what numpy would convert; it is fast too.
        return np.array(values, np.float64) if math.isfinite(sum(values)) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _read_rle(segmentation: Mapping[str, Any], height: int, width: int) -> Mask:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if isinstance(size, tuple | np.ndarray):
        size = list(size)
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    try:
        compressed, lengths = check_rle({"size": size, "counts": counts}, height, width)
    except ValueError as error:
        return Mask(problems=[("malformed mask", str(error))])
    area = int(lengths[1::2].sum())
    if not area:
        return Mask(problems=[_NO_PIXEL])
    return Mask({"size": [height, width], "counts": compressed}, area, _to_extent(box_of_runs(lengths, height)))


def _draw(parts: list[np.ndarray], height: int, width: int) -> Mask:
    problems = []
    drawn = []
    for number, points in enumerate(parts):
        if is_degenerate(points):
            message = f"field segmentation: polygon number {number} of {len(points)} points; expected three, not on a line"
            problems.append(("degenerate polygon", message))
            continue
        if is_outside(points, height, width):
            message = f"field segmentation: polygon number {number} reaches beyond {width}x{height} pixels"
            problems.append(("polygon outside the image", message))
            points = clip(points, height, width)
        if len(points) >= 3:
            drawn.append(points)
    polygons = [points.ravel() for points in drawn]
    rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width)) if drawn else None
    area = int(mask_util.area(rle)) if rle else 0
    if not area:
        # Why is said already where nothing was drawn.
        return Mask(problems=problems if rle is None and problems else [*problems, _NO_PIXEL])
    points = np.concatenate(drawn) if len(drawn) > 1 else drawn[0]
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    extent = [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]
    if extent[0] >= extent[2] or extent[1] >= extent[3]:
        # A polygon beside the image by less than OUTSIDE can have pixels in it.
        extent = _to_extent(mask_util.toBbox(rle).tolist())
    return Mask(rle, area, extent, problems)


def _to_extent(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _shown(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{number:.6g}" for number in numbers) + "]"
