"""Outlines as annotators keep them, a file an image: ImageJ's ROIs (.zip, .roi), QuPath's GeoJSON, LabelMe's JSON.

All three count from the outer corner of the first pixel, as COCO's polygons do: the pixel in row y and column x is the
square from (x, y) to (x + 1, y + 1), and an outline has the pixels whose centres are inside (pycocotools, which draws them,
rounds to a fifth of a pixel). So coordinates are taken as they are, and an outline along the borders of pixels, as `trace`
and ImageJ's wand make it, gives exactly those pixels back.
"""

import base64
import io
import json
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi
from scipy import ndimage

from cupre_d2.data.formats.coco_arrays import LARGEST, box_of
from cupre_d2.data.formats.image_folder import image_record, in_threads
from cupre_d2.data.formats.mask_images import pair_by_stem
from cupre_d2.data.formats.rle import window_to_annotation
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

# A closed line, Nx2, x and y of its corners; the last is joined to the first.
Ring = np.ndarray
# Inside of it is what is inside of an odd number of its rings: an outer one and holes, as a rule.
Polygon = list[Ring]

OUTLINE_SUFFIXES = (".zip", ".roi", ".geojson", ".json")
_ROI_SUFFIXES = (".zip", ".roi")
# Bytes of one ROI; a freehand line of a million corners has 12 million.
_LARGEST_ROI = 2**26
_AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL)
_NO_AREAS = (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE)
# Corners of the polygon that stands for an oval or a circle: off by 0.1 pixels at a radius of 200.
_ROUND = 100


@dataclass(frozen=True)
class Outline:
    """One instance of a file.

    Attributes:
        record, field: what errors call it by, and where its class is said.
        name: of its class; None where the file says none. Of a ROI, whose name may be anything, see `_category`.
        polygons: the instance is all of them together.
        page: of a stack, from 0; None where the file does not say.
        mask: in place of polygons, HxW bool, and its top and left.
    """

    record: str
    field: str
    name: str | None
    polygons: Sequence[Polygon]
    page: int | None = None
    mask: tuple[np.ndarray, int, int] | None = None


def load_outlines(
    images: Path, annotations: Path, classes: Sequence[str] | None = None, page: int | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Records of the images that have a file of outlines of the same stem, sorted by file name; image_id is the stem.

    An instance without holes becomes Detectron2's polygons, one with holes an RLE. An image without a file, or the reverse,
    is left out, counted and logged; one whose file holds no outline is an image without cells. Outlines without area
    (fewer than three corners, or all in a line) are left out, counted and logged too.

    Args:
        images: folder of the images.
        annotations: folder of the files, or the one file of one image.
        classes: names of the classes in order of category id. An outline that says none is of the only one. None takes
            those that GeoJSON and LabelMe name, sorted; "cell" where they name none and for ROIs.
        page: of stacks; where some outlines of a file say what page they are on, those on other pages are left out.

    Returns:
        The records, and the classes.

    Raises:
        DatasetError: see `mask_images.pair_by_stem`; or a file cannot be read, a field is missing or malformed, an outline
            is no area, lies outside of its image, or is of no known class.
    """
    stems, image_files, files = pair_by_stem(images, annotations, "ROI, GeoJSON or LabelMe file", OUTLINE_SUFFIXES)
    records = in_threads(image_record, image_files, stems)
    outlines = in_threads(_read, files, records)
    if page is not None:
        outlines = [_on_page(of_file, page) for of_file in outlines]
    if classes is None:
        named = zip(files, outlines, strict=True)
        found = {one.name for file, many in named if file.suffix.lower() not in _ROI_SUFFIXES for one in many if one.name}
        classes = sorted(found) or ["cell"]
    skipped: Counter[str] = Counter()
    for file, record, of_file in zip(files, records, outlines, strict=True):
        made = [_annotation(file, outline, record, classes) for outline in of_file]
        record["annotations"] = [annotation for annotation in made if annotation]
        skipped[file.name] += len(made) - len(record["annotations"])
    if skipped.total():
        message = "%s: left out %d outlines without area, the first in %s"
        logger.warning(message, annotations, skipped.total(), next(name for name, count in skipped.items() if count))
    return records, list(classes)


def trace(mask: np.ndarray) -> list[Polygon]:
    """The outlines of an HxW bool mask along the borders of its pixels, exactly.

    Returns:
        A polygon for each part whose pixels touch along a side: its outer ring, then its holes. Corners are whole numbers,
        no ring meets itself, and rings meet each other at corners at most, so that polygons are valid for GEOS. In an image,
        where y points down, outer rings run clockwise and holes counter-clockwise.
    """
    inside = np.pad(mask, 1)
    width = inside.shape[1]
    flat = inside.ravel()
    pixels = np.flatnonzero(flat)
    # Right, down, left, up: a step from corner to corner (a corner has the number of the pixel right below it), the
    # pixel across the side that is walked along, and the corner to start from. The inside is on the right.
    steps = np.array([1, width, -1, -width])
    across, corner = (-width, 1, width, -1), (0, 1, width + 1, width)
    starts = [pixels[~flat[pixels + across[way]]] + corner[way] for way in range(4)]
    ways = np.repeat(np.arange(4), [len(of_way) for of_way in starts])
    start = np.concatenate(starts)
    number = np.full((4, flat.size), -1)
    number[ways, start] = np.arange(len(start))
    end = start + steps[ways]
    # Where two pixels touch at a corner only, turning right stays with the same pixel.
    choices = np.stack([number[(ways + turn) % 4, end] for turn in (1, 0, 3)])
    following = choices[np.argmax(choices >= 0, axis=0), np.arange(len(end))]
    turns = ways[following] != ways
    outer: list[tuple[int, Ring]] = []
    holes: list[tuple[int, Ring]] = []
    for walk in _cycles(following.tolist()):
        corners = end[walk][turns[walk]]
        for loop in _simple_loops(corners.tolist()):
            y, x = np.divmod(np.array(loop), width)
            ring = np.stack([x - 1, y - 1], axis=1)
            # A pixel of the part that the ring is a border of.
            pixel = start[walk[0]] - corner[ways[walk[0]]]
            doubled_area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum()
            (outer if doubled_area > 0 else holes).append((pixel, ring))
    if len(outer) == 1:
        return [[outer[0][1], *(ring for _, ring in holes)]]
    parts = ndimage.label(inside)[0].ravel()
    return [[ring, *(hole for at, hole in holes if parts[at] == parts[pixel])] for pixel, ring in outer]


def _cycles(following: list[int]) -> Iterator[list[int]]:
    seen = bytearray(len(following))
    for first in range(len(following)):
        cycle = []
        while not seen[first]:
            seen[first] = 1
            cycle.append(first)
            first = following[first]
        if cycle:
            yield cycle


def _simple_loops(corners: list[int]) -> Iterator[list[int]]:
    """A closed walk cut where it comes to the same corner again."""
    path: list[int] = []
    place: dict[int, int] = {}
    for corner in corners:
        if corner in place:
            loop = path[place[corner] :]
            del path[place[corner] :]
            for passed in loop:
                del place[passed]
            yield loop
        place[corner] = len(path)
        path.append(corner)
    yield path


# ------------------------------------------------------------------------------------------------------------- to records


def _on_page(outlines: list[Outline], page: int) -> list[Outline]:
    pages = {outline.page for outline in outlines}
    return outlines if pages <= {None} else [outline for outline in outlines if outline.page in (page, None)]


def _annotation(file: Path, outline: Outline, record: dict[str, Any], classes: Sequence[str]) -> dict[str, Any] | None:
    """None for an outline without area."""
    height, width = record["height"], record["width"]
    category = _category(file, outline, classes)
    if outline.mask:
        mask, top, left = outline.mask
        if not (0 <= top <= height - len(mask) and 0 <= left <= width - mask.shape[1]):
            raise _outside(file, outline, (left, top, mask.shape[1], len(mask)), height, width)
        annotation = _in_image(mask, top, left, height, width)
        return annotation and annotation | {"category_id": category}
    polygons = [[ring for ring in polygon if len(ring) >= 3] for polygon in outline.polygons]
    rings = [ring for polygon in polygons for ring in polygon]
    if not rings:
        return None
    box = box_of([ring.ravel().tolist() for ring in rings])
    if not box[2] or not box[3]:
        return None
    if box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        raise _outside(file, outline, box, height, width)
    if len(rings) == len(polygons):
        flat: Any = [ring.astype(np.float64).ravel() for ring in rings]
        return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "segmentation": flat, "category_id": category, "iscrowd": 0}
    annotation = _draw(polygons, box, height, width)
    return annotation and annotation | {"category_id": category}


def _outside(file: Path, outline: Outline, box: Sequence[float], height: int, width: int) -> DatasetError:
    left, top, columns, rows = box
    return DatasetError(
        f"{file}: {outline.record}: from ({left:g}, {top:g}) to ({left + columns:g}, {top + rows:g}); "
        f"expected an outline inside of its image of {width}x{height} pixels"
    )


def _draw(polygons: Sequence[Polygon], box: Sequence[float], height: int, width: int) -> dict[str, Any] | None:
    """The RLE of polygons, drawn within their box as pycocotools draws COCO's."""
    left, top = (max(0, int(np.floor(side))) for side in box[:2])
    columns = min(width, int(np.ceil(box[0] + box[2]))) - left
    rows = min(height, int(np.ceil(box[1] + box[3]))) - top
    drawn = np.zeros((rows, columns), bool)
    for polygon in polygons:
        flat = [(ring - (left, top)).ravel().tolist() for ring in polygon]
        drawn |= mask_util.decode(mask_util.frPyObjects(flat, rows, columns)).sum(axis=2) % 2 == 1
    return _in_image(drawn, top, left, height, width)


def _in_image(mask: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any] | None:
    """The annotation of a mask whose first pixel lies at (top, left); None if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    tight = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    window = tuple(slice(int(side.start) + at, int(side.stop) + at) for side, at in zip(tight, (top, left), strict=True))
    return window_to_annotation(mask[tight], window, (height, width))


def _category(file: Path, outline: Outline, classes: Sequence[str]) -> int:
    """Place of the outline's class.

    The name of a ROI is the class's, with or without what tells it from others: "round", "round-12", "round 0123-0456".
    """
    if file.suffix.lower() in _ROI_SUFFIXES:
        fits = [name for name in classes if re.match(rf"{re.escape(name)}(?![^\W\d_])", outline.name or "")]
        name = classes[0] if len(classes) == 1 else max(fits, key=len, default=outline.name)
    else:
        name = classes[0] if len(classes) == 1 and outline.name is None else outline.name
    if name is None or name not in classes:
        found = "missing" if name is None else repr(name)
        raise DatasetError(f"{file}: {outline.record}, field {outline.field}: {found}; expected one of {', '.join(classes)}")
    return list(classes).index(name)


# ---------------------------------------------------------------------------------------------------------------- reading


def _read(file: Path, record: dict[str, Any]) -> list[Outline]:
    """All outlines of a file, whose image has that record."""
    try:
        if file.suffix.lower() in _ROI_SUFFIXES:
            return [_of_roi(file, name, data) for name, data in _rois(file)]
        content = json.loads(file.read_bytes())
    except DatasetError:
        raise
    except Exception as error:
        # roifile and zipfile meet broken files with nearly every exception there is.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{file}: cannot be read as ImageJ ROIs, GeoJSON or LabelMe's JSON ({reason})") from error
    if isinstance(content, dict) and "shapes" in content:
        return _labelme(file, content, record["height"], record["width"])
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = _field(file, "", content, "features", list)
    features = content if isinstance(content, list) else [content]
    if not all(isinstance(feature, dict) and feature.get("type") == "Feature" for feature in features):
        raise DatasetError(
            f"{file}: expected GeoJSON (a FeatureCollection or a list of Features) or LabelMe's JSON (shapes)"
        )
    return [_of_feature(file, number, feature) for number, feature in enumerate(features)]


def _rois(file: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the ROIs in a .zip or .roi."""
    if file.suffix.lower() == ".roi":
        yield file.stem, file.read_bytes()
        return
    others = 0
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = Path(entry.filename)
            # macOS adds files whose names begin with a dot.
            if entry.is_dir() or name.suffix.lower() != ".roi" or name.name.startswith("."):
                others += not entry.is_dir()
            elif entry.file_size > _LARGEST_ROI:
                raise ValueError(f"{name} of {entry.file_size} bytes")
            else:
                yield name.stem, archive.read(entry)
    if others:
        logger.info("%s: left out %d files that are no .roi", file, others)


def _of_roi(file: Path, name: str, data: bytes) -> Outline:
    record = f"ROI {name!r}"
    try:
        roi = ImagejRoi.frombytes(data)
        what = roi.subtype.name if roi.subtype in _NO_AREAS else roi.roitype.name
        if roi.roitype == ROI_TYPE.RECT and roi.rounded_rect_arc_size:
            what = "rounded RECT"
        elif roi.options & ROI_OPTIONS.SPLINE_FIT:
            what = "spline"
        elif roi.roitype in _AREAS and roi.subtype not in _NO_AREAS:
            what = ""
        rings = [] if what else _rings_of_roi(roi)
    except Exception as error:
        raise DatasetError(f"{file}: {record}: cannot be read ({' '.join(str(error).split())})") from error
    if what:
        raise DatasetError(
            f"{file}: {record}, field type: {what.lower()}; "
            "expected an area: polygon, freehand, traced, rectangle, oval or composite"
        )
    for ring in rings:
        _check_numbers(file, record, "coordinates", ring)
    page = roi.position or roi.t_position or roi.z_position
    return Outline(record, "name", roi.name or name, [rings], page - 1 if page > 0 else None)


def _rings_of_roi(roi: ImagejRoi) -> Polygon:
    if roi.composite or roi.roitype not in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        return [np.asarray(ring, np.float64) for ring in roi.coordinates(multi=True)]
    corner, size = np.array([roi.left, roi.top]), np.array([roi.right - roi.left, roi.bottom - roi.top])
    if roi.subpixelrect:
        corner, size = np.array([roi.xd, roi.yd]), np.array([roi.widthd, roi.heightd])
    return [_rectangle(corner, corner + size) if roi.roitype == ROI_TYPE.RECT else _ellipse(corner + size / 2, size / 2)]


def _rectangle(first: np.ndarray, last: np.ndarray) -> Ring:
    return np.stack([first, [last[0], first[1]], last, [first[0], last[1]]]).astype(np.float64)


def _ellipse(center: np.ndarray, radii: np.ndarray) -> Ring:
    angles = np.arange(_ROUND) * (2 * np.pi / _ROUND)
    return center + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _of_feature(file: Path, number: int, feature: dict[str, Any]) -> Outline:
    record = f"feature {number}"
    geometry = _field(file, record, feature, "geometry", dict)
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise DatasetError(f"{file}: {record}, field geometry.type: {kind!r}; expected Polygon or MultiPolygon")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise DatasetError(f"{file}: {record}, field geometry.coordinates: expected lists of rings [[x, y], ...]")
    rings = [[_ring(file, record, "geometry.coordinates", ring) for ring in polygon] for polygon in polygons]
    properties = feature.get("properties") or {}
    classification = properties.get("classification") if isinstance(properties, dict) else None
    name = None
    if classification is not None:
        # QuPath before 0.4 wrote no name but a list of names for what it calls derived classes.
        named = classification if isinstance(classification, dict) else {"name": classification}
        names = named.get("names")
        name = ": ".join(map(str, names)) if isinstance(names, list) else named.get("name")
        if name is not None and not isinstance(name, str):
            raise DatasetError(f"{file}: {record}, field properties.classification.name: {name!r}; expected text")
    plane = geometry.get("plane")
    page = (plane.get("t") or plane.get("z")) if isinstance(plane, dict) else None
    return Outline(record, "properties.classification.name", name, rings, page)


def _labelme(file: Path, content: dict[str, Any], height: int, width: int) -> list[Outline]:
    for field, size in (("imageHeight", height), ("imageWidth", width)):
        if content.get(field) not in (None, size):
            raise DatasetError(f"{file}: field {field}: {content[field]!r}; expected that of its image, {size}")
    grouped: dict[Any, Outline] = {}
    for number, shape in enumerate(_field(file, "", content, "shapes", list)):
        record = f"shape {number}"
        if not isinstance(shape, dict):
            raise DatasetError(f"{file}: {record}: {type(shape).__name__}; expected an object")
        outline = _of_shape(file, record, shape)
        # Parts of one instance, as of a cell that another hides in the middle, are a group.
        group = shape.get("group_id")
        key = number if group is None or outline.mask else (outline.name, str(group))
        first = grouped.get(key)
        polygons = [*(first.polygons if first else ()), *outline.polygons]
        grouped[key] = Outline((first or outline).record, "label", outline.name, polygons, None, outline.mask)
    return list(grouped.values())


def _of_shape(file: Path, record: str, shape: dict[str, Any]) -> Outline:
    label = _field(file, record, shape, "label", str)
    kind = shape.get("shape_type", "polygon")
    points = _ring(file, record, "points", shape.get("points"))
    mask = None
    rings: Polygon = [points]
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        raise DatasetError(f"{file}: {record}, field points: {len(points)}; expected two of a {kind}")
    if kind == "rectangle":
        rings = [_rectangle(*points)]
    elif kind == "circle":
        rings = [_ellipse(points[0], np.hypot(*(points[1] - points[0])))]
    elif kind == "mask":
        left, top = points.min(axis=0).astype(int).tolist()
        mask, rings = (_embedded_mask(file, record, _field(file, record, shape, "mask", str)), top, left), []
    elif kind != "polygon":
        raise DatasetError(f"{file}: {record}, field shape_type: {kind!r}; expected polygon, rectangle, circle or mask")
    return Outline(record, "label", label, [rings] if rings else [], None, mask)


def _embedded_mask(file: Path, record: str, text: str) -> np.ndarray:
    """HxW bool of the PNG that LabelMe's own segmentation models draw."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            return np.asarray(image.convert("L")) > 0
    except Exception as error:
        raise DatasetError(f"{file}: {record}, field mask: cannot be read ({error}); expected a PNG in base64") from error


def _ring(file: Path, record: str, field: str, points: Any) -> Ring:
    """Nx2 float64 of a list of points, the last one left out where it is the first again."""
    try:
        ring = np.array(points)
    except ValueError:
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] != 2 or ring.dtype.kind not in "iuf":
        raise DatasetError(f"{file}: {record}, field {field}: expected points [[x, y], ...]")
    _check_numbers(file, record, field, ring)
    ring = ring.astype(np.float64)
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _check_numbers(file: Path, record: str, field: str, ring: Ring) -> None:
    if not (np.abs(ring) <= LARGEST).all():
        raise DatasetError(f"{file}: {record}, field {field}: expected numbers of at most {LARGEST} pixels")


def _field(file: Path, record: str, entry: dict[str, Any], field: str, kind: type) -> Any:
    value = entry.get(field)
    if not isinstance(value, kind):
        where = f"{record}, field" if record else "field"
        found = type(value).__name__ if field in entry else "missing"
        raise DatasetError(f"{file}: {where} {field}: {found}; expected {kind.__name__}")
    return value
