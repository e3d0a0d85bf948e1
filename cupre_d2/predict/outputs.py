"""What is written of a segmented page, and of all pages together.

A format has a folder in the output folder, and in it a file a page, of the page's name: so label images, ROIs and GeoJSON,
corrected or not, come back as annotations of the same images (`register_cell_dataset`). Files are whole or not there. Images
and cells are read by regions: what grows with them in memory are tables of numbers a cell.
"""

import itertools
import json
import math
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import tifffile
from roifile import ROI_TYPE, ImagejRoi

from cupre_d2.data.formats.outlines import Polygon, trace
from cupre_d2.data.formats.rle import window_to_annotation
from cupre_d2.errors import ConfigError, closest
from cupre_d2.files import write_whole
from cupre_d2.predict import overview
from cupre_d2.predict.canvas import Segmentation
from cupre_d2.predict.measure import PixelSize, measure, pixel_size
from cupre_d2.predict.run import Written
from cupre_d2.predict.sources import Page

# Label images of more pixels along a side are written in tiles of this side, and so never whole in memory.
LARGE, TILE = 4096, 1024


@dataclass(frozen=True)
class Prediction:
    """A page and its cells.

    Attributes:
        classes: names in order of "category" in the segmentation's table.
        size: height and width of a pixel in micrometres, where the page's file says so.
    """

    page: Page
    segmentation: Segmentation
    classes: Sequence[str]
    size: PixelSize | None

    @cached_property
    def measurements(self) -> pd.DataFrame:
        """See `measure.measure`."""
        return measure(self.segmentation, self.page.read, self.classes, self.size, self.page.channels)

    def cells(self) -> Iterator[tuple[Any, tuple[slice, slice], np.ndarray]]:
        """Of each cell its row of the table, its box in the image, and the mask in the box, in order of label."""
        for row in self.segmentation.table.itertuples():
            window = slice(int(row.top), int(row.bottom)), slice(int(row.left), int(row.right))
            yield row, window, np.asarray(self.segmentation.labels[window]) == row.label


# ----------------------------------------------------------------------------------------------------------------- a page


def write_labels(prediction: Prediction, file: IO[bytes]) -> None:
    """A TIFF of 16 bits, or of 32 for more than 65,535 cells, zlib-compressed; OME's metadata have the size of a pixel."""
    labels, size = prediction.segmentation.labels, prediction.size
    height, width = labels.shape
    dtype = np.uint16 if len(prediction.segmentation.table) < 2**16 else np.uint32
    # The same labels give the same file.
    metadata: dict[str, Any] = {"axes": "YX", "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, prediction.page.name))}
    options: dict[str, Any] = {}
    if size:
        for axis, side in zip("YX", size, strict=True):
            metadata |= {f"PhysicalSize{axis}": side, f"PhysicalSize{axis}Unit": "µm"}
        options = {"resolution": (1e4 / size[1], 1e4 / size[0]), "resolutionunit": "CENTIMETER"}
    data: Any = np.asarray(labels).astype(dtype) if max(height, width) <= LARGE else _tiles(labels, dtype)
    if max(height, width) > LARGE:
        options["tile"] = (TILE, TILE)
    with tifffile.TiffWriter(file, ome=True, bigtiff=labels.size * np.dtype(dtype).itemsize > 2**31) as writer:
        writer.write(
            data,
            shape=(height, width),
            dtype=dtype,
            photometric="minisblack",
            compression="zlib",
            metadata=metadata,
            maxworkers=1,
            **options,
        )


def _tiles(labels: np.ndarray, dtype: type) -> Iterator[np.ndarray]:
    height, width = labels.shape
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield labels[top : top + TILE, left : left + TILE].astype(dtype)


def write_measurements(prediction: Prediction, file: IO[bytes]) -> None:
    """A CSV, a row a cell, with the name of the image's file before what `measure.measure` has."""
    table = prediction.measurements.copy(deep=False)
    table.insert(0, "image", prediction.page.file.name)
    _write_csv(table, file)


def _write_csv(table: pd.DataFrame, file: IO[bytes]) -> None:
    """With "?" for what is no text, as file names may be."""
    table.to_csv(file, index=False, float_format="%.8g", errors="replace")


def write_coco(prediction: Prediction, file: IO[bytes]) -> None:
    """COCO's instances JSON of one image, masks as RLE, with "score"; `join_coco` makes one of all images."""
    page = prediction.page
    height, width = page.shape
    image = {"id": 1, "file_name": page.file.name, "height": height, "width": width} | _page_of(page.page)
    _write_coco(file, [image], _coco_annotations(prediction), prediction.classes)


def _page_of(page: int | None) -> dict[str, int]:
    """Of a stack; COCO's format has no field for it."""
    return {} if page is None else {"page": page}


def _coco_annotations(prediction: Prediction) -> Iterator[dict[str, Any]]:
    for row, window, mask in prediction.cells():
        annotation = window_to_annotation(mask, window, prediction.segmentation.labels.shape)
        yield {
            "id": int(row.label),
            "image_id": 1,
            "category_id": int(row.category) + 1,
            "bbox": annotation["bbox"],
            "area": int(np.count_nonzero(mask)),
            "segmentation": annotation["segmentation"],
            "iscrowd": 0,
            **_finite({"score": float(row.score)}),
        }


def _write_coco(
    file: IO[bytes], images: Sequence[Mapping[str, Any]], annotations: Iterator[Mapping[str, Any]], classes: Sequence[str]
) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    file.write(b'{"images": [\n' + ",\n".join(map(json.dumps, images)).encode())
    file.write(b'\n],\n"categories": ' + json.dumps(categories).encode() + b',\n"annotations": [')
    _write_lines(file, annotations)
    file.write(b"\n]}\n")


def _write_lines(file: IO[bytes], entries: Iterator[Mapping[str, Any]]) -> None:
    """One a line, with commas between."""
    for number, entry in enumerate(entries):
        file.write((b",\n" if number else b"\n") + json.dumps(entry).encode())


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Those that JSON can say."""
    return {name: number for name, number in numbers.items() if not isinstance(number, float) or math.isfinite(number)}


def write_rois(prediction: Prediction, file: IO[bytes]) -> None:
    """A zip of ImageJ ROIs, named CLASS-LABEL, with the score among their properties.

    A cell in one piece is a traced ROI, one with holes or in several pieces a composite one. Their corners are those of
    pixels: whole numbers, (0, 0) being the outer corner of the first pixel as in ImageJ, whose mask of a ROI is the cell.
    """
    digits = len(str(len(prediction.segmentation.table)))
    with zipfile.ZipFile(file, "w") as archive:
        for row, window, mask in prediction.cells():
            name = f"{prediction.classes[row.category]}-{row.label:0{digits}}"
            roi = _roi(_outlines(mask, window), window)
            roi.name = name
            roi.props = f"label: {row.label}\nscore: {row.score:.4f}\n"
            if prediction.page.page is not None:
                roi.position = prediction.page.page + 1
            # Names of classes may hold what file names may not. Without a date, the same cells give the same file.
            entry = zipfile.ZipInfo(
                "".join(letter if letter.isalnum() or letter in " -_." else "_" for letter in name) + ".roi"
            )
            archive.writestr(entry, roi.tobytes(), zipfile.ZIP_DEFLATED)


def _outlines(mask: np.ndarray, window: tuple[slice, slice]) -> list[Polygon]:
    """Of a mask in its window, in pixels of the image."""
    corner = window[1].start, window[0].start
    return [[ring + corner for ring in polygon] for polygon in trace(mask)]


def _roi(polygons: list[Polygon], window: tuple[slice, slice]) -> ImagejRoi:
    rings = [ring for polygon in polygons for ring in polygon]
    if len(rings) == 1:
        roi = ImagejRoi.frompoints(rings[0])
        roi.roitype = ROI_TYPE.TRACED
        return roi
    # ImageJ's path: 0 goes to a point, 1 draws a line to one, 4 closes it.
    steps = [[[float(number > 0), x, y] for number, (x, y) in enumerate(ring.tolist())] for ring in rings]
    path = np.concatenate([np.append(np.ravel(ring), 4.0) for ring in steps]).astype(np.float32)
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,
        top=window[0].start,
        left=window[1].start,
        bottom=window[0].stop,
        right=window[1].stop,
        shape_roi_size=len(path),
        multi_coordinates=path,
    )


def write_geojson(prediction: Prediction, file: IO[bytes]) -> None:
    """A FeatureCollection of QuPath's annotations, with classes and measurements; corners as in `write_rois`."""
    measurements = prediction.measurements
    names = [name for name in measurements if name not in ("label", "class", "top", "left", "bottom", "right")]
    columns = [measurements[name].tolist() for name in names]
    colours = overview.colours(len(prediction.classes)).tolist()

    def features() -> Iterator[dict[str, Any]]:
        for (row, window, mask), *values in zip(prediction.cells(), *columns, strict=True):
            polygons = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in _outlines(mask, window)]
            geometry: dict[str, Any] = {"type": "MultiPolygon", "coordinates": polygons}
            if len(polygons) == 1:
                geometry = {"type": "Polygon", "coordinates": polygons[0]}
            if prediction.page.page:
                geometry["plane"] = {"c": -1, "z": 0, "t": prediction.page.page}
            properties = {
                "objectType": "annotation",
                "name": str(row.label),
                "classification": {"name": prediction.classes[row.category], "color": colours[row.category]},
                # In QuPath all of them are numbers.
                "measurements": _finite({name: value + 0 for name, value in zip(names, values, strict=True)}),
            }
            yield {"type": "Feature", "geometry": geometry, "properties": properties}

    file.write(b'{"type": "FeatureCollection", "features": [')
    _write_lines(file, features())
    file.write(b"\n]}\n")


def write_overlay(prediction: Prediction, file: IO[bytes]) -> None:
    """A PNG of the image with the cells on it, at most 2048 pixels a side."""
    overview.write_picture(prediction.page, prediction.segmentation, file, ".png", 2048)


def write_preview(prediction: Prediction, file: IO[bytes]) -> None:
    """What the report shows of the page, should it come to show it."""
    overview.write_picture(prediction.page, prediction.segmentation, file, ".jpg", overview.LONG_SIDE)


def summarize(prediction: Prediction) -> dict[str, Any]:
    """What `counts` and `report` are to know of a page; None for what an image without cells does not have."""
    table = prediction.segmentation.table
    area = table["area"].to_numpy(float)
    return {
        "cells": len(table),
        "by_class": {name: int((table["category"] == number).sum()) for number, name in enumerate(prediction.classes)},
        "edge": int(table["edge"].sum()),
        "stitched": int(table["stitched"].sum()),
        "mean_score": _or_none(table["score"].mean()),
        "median_area": _or_none(np.median(area)) if len(area) else None,
        "pixel_size_um": None if prediction.size is None else list(prediction.size),
        # How many cells have an area of 2**(k / 4) pixels or more, but less than the next.
        "areas": np.bincount((4 * np.log2(area)).astype(int)).tolist() if len(area) else [],
    }


def _or_none(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


# -------------------------------------------------------------------------------------------------------------- all pages


def write_counts(folder: Path, pages: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> None:
    """counts.csv, a row a page: "image" and "count", as `register_cell_dataset(counts=...)` takes them, and more."""
    rows = []
    for entry in pages:
        summary = entry["summary"]
        row = {"image": Path(entry["file"]).name, "count": summary["cells"], "name": entry["name"], "page": entry["page"]}
        row |= {side: entry[side] for side in ("height", "width")}
        if len(summary["by_class"]) > 1:
            row |= {f"count_{name}": count for name, count in summary["by_class"].items()}
        row |= {name: summary[name] for name in ("edge", "stitched", "mean_score", "median_area")}
        if summary["pixel_size_um"]:
            area = entry["height"] * entry["width"] * math.prod(summary["pixel_size_um"])
            row["cells_per_mm2"] = summary["cells"] / (area * 1e-6)
        rows.append(row)
    table = pd.DataFrame(rows).astype({"page": "Int64"}) if rows else pd.DataFrame(columns=["image", "count"])
    write_whole(folder / "counts.csv", lambda file: _write_csv(table, file))


def join_coco(folder: Path, pages: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> None:
    """coco.json, of all pages in this format; file names are relative to the innermost folder that holds all images."""
    pages = [entry for entry in pages if "coco" in entry["formats"]]
    root = os.path.commonpath([os.path.dirname(entry["file"]) for entry in pages]) if pages else ""
    images: list[dict[str, Any]] = []
    classes: list[str] = []
    for number, entry in enumerate(pages, start=1):
        classes = list(entry["summary"]["by_class"])
        name = Path(entry["file"]).relative_to(root).as_posix()
        size = {side: entry[side] for side in ("height", "width")}
        images.append({"id": number, "file_name": name, **size} | _page_of(entry["page"]))

    def annotations() -> Iterator[dict[str, Any]]:
        numbers = itertools.count(1)
        for image, entry in zip(images, pages, strict=True):
            of_page = json.loads((folder / FORMATS["coco"].file("coco", entry["name"])).read_bytes())
            for annotation in of_page["annotations"]:
                yield annotation | {"id": next(numbers), "image_id": image["id"]}

    write_whole(folder / "coco.json", lambda file: _write_coco(file, images, annotations(), classes))


@dataclass(frozen=True)
class Format:
    """
    Attributes:
        suffix: of a page's file; "" where there is none.
        write: writes it.
        finish: writes what is of all pages together: of the output folder, the pages' entries in predictions.json and a line
            for each input that failed.
    """

    suffix: str = ""
    write: Callable[[Prediction, IO[bytes]], None] | None = None
    finish: Callable[[Path, Sequence[Mapping[str, Any]], Sequence[str]], None] | None = None

    def file(self, name: str, page: str) -> str:
        """Of a page, given its name and the format's; relative to the output folder."""
        return f"{name}/{page}{self.suffix}"


FORMATS: dict[str, Format] = {
    "labels": Format(".tif", write_labels),
    "measurements": Format(".csv", write_measurements),
    "counts": Format(finish=write_counts),
    "report": Format(".jpg", write_preview, overview.write_report),
    "coco": Format(".json", write_coco, join_coco),
    "rois": Format(".zip", write_rois),
    "geojson": Format(".geojson", write_geojson),
    "overlays": Format(".png", write_overlay),
}
DEFAULT = ("labels", "measurements", "counts", "report")


class Outputs:
    """Writes the pages of a job; see `run.Outputs`.

    Args:
        folder: of the job.
        classes: of the model, in order of category.
        formats: of FORMATS.

    Raises:
        ConfigError: there is no such format.
    """

    def __init__(self, folder: str | os.PathLike[str], classes: Sequence[str], formats: Sequence[str] = DEFAULT) -> None:
        for name in formats:
            if name not in FORMATS:
                raise ConfigError(f"format {name!r}: unknown; {closest(name, FORMATS)}")
        self.formats = tuple(dict.fromkeys(formats))
        self._folder = Path(folder).expanduser().absolute()
        self._classes = tuple(classes)

    def write(self, page: Page, segmentation: Segmentation) -> Written:
        """Writes a page's files.

        Raises:
            DatasetError: the image cannot be read.
            OSError: a file cannot be written.
        """
        prediction = Prediction(page, segmentation, self._classes, pixel_size(page.file))
        files = []
        for name in self.formats:
            if write := FORMATS[name].write:
                files.append(FORMATS[name].file(name, page.name))
                path = self._folder / files[-1]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, lambda file, write=write: write(prediction, file))  # type: ignore[misc]
        return Written(files, summarize(prediction))

    def finish(self, pages: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> None:
        """Writes what is of all pages together, from their entries in predictions.json."""
        for name in self.formats:
            if finish := FORMATS[name].finish:
                finish(self._folder, pages, failures)
