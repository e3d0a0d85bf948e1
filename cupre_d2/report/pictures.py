"""Images and outlines small enough to stand in the page itself."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

from cupre_d2.data.images import PERCENTILES, Percentiles, read_record
from cupre_d2.evaluation.cells import Rle
from cupre_d2.report.detections import START_LEVEL, Evaluated
from cupre_d2.report.matching import FALSE, HIT, NEUTRAL, Counts, ImageMatch, Tally

# Pixels. Phones show less, and outlines are drawn above it, not in it.
LONG_SIDE = 768
JPEG_QUALITY = 82
# Bytes of all pictures together; with it the file stays below 10 MB, which a mail takes.
PICTURE_BYTES = 8_000_000


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        name: of the file, without folders.
        width, height: of the original, in pixels; outlines are in these coordinates.
        jpeg: a data URI.
        counts: at START_LEVEL.
        cells: [outline, level at which it is still found] of each true cell.
        crowds: outlines.
        detections: [outline, level, outcome] of each.
    """

    name: str
    width: int
    height: int
    jpeg: str
    counts: Counts
    cells: list[tuple[str, int]]
    crowds: list[str]
    detections: list[tuple[str, int, int]]

    @property
    def size(self) -> int:
        """Bytes in the page, about; a little is added for what stands around each outline."""
        outlines = [*self.crowds, *(cell[0] for cell in self.cells), *(detection[0] for detection in self.detections)]
        return len(self.jpeg) + sum(len(outline) + 12 for outline in outlines)


@dataclass(frozen=True)
class DatasetPart:
    """A data set that a model was evaluated on.

    Attributes:
        images: how many it has.
        pictures: of some of them.
        tally: of all images.
    """

    name: str
    images: int
    pictures: list[Picture]
    tally: Tally


def dataset_part(evaluated: Evaluated, budget: int, percentiles: Percentiles = PERCENTILES) -> DatasetPart:
    """With the first pictures that have room in so many bytes; one of crowded cells may take a megabyte.

    Args:
        percentiles: INPUT.PERCENTILES, by which the model saw the images.

    Raises:
        DatasetError: an image cannot be read.
    """
    pictures: list[Picture] = []
    for image in evaluated.worst:
        picture = make_picture(image, percentiles)
        budget -= picture.size
        if budget < 0:
            break
        pictures.append(picture)
    return DatasetPart(evaluated.name, evaluated.images, pictures, evaluated.tally)


def picture_data(datasets: Sequence[DatasetPart]) -> dict[str, Any]:
    """What report.js draws from."""
    return {
        "outcomes": {"hit": HIT, "false": FALSE, "neutral": NEUTRAL},
        "datasets": [
            {
                "cells": part.tally.cells,
                "found": part.tally.found.tolist(),
                "false": part.tally.false.tolist(),
                "pictures": [
                    {"cells": picture.cells, "crowds": picture.crowds, "detections": picture.detections}
                    for picture in part.pictures
                ],
            }
            for part in datasets
        ],
    }


def make_picture(image: ImageMatch, percentiles: Percentiles = PERCENTILES) -> Picture:
    """Arguments and errors as of `dataset_part`."""
    record: dict[str, Any] = dict(image.record)
    pixels = read_record(record, "BGR", percentiles)
    zoom = min(1.0, LONG_SIDE / max(pixels.shape[:2]))
    height, width = (max(1, round(side * zoom)) for side in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    # Half a pixel of the page is not to be seen.
    tolerance = 0.5 / zoom
    found = [outline(mask, tolerance) for mask in image.detections.masks]
    true: dict[bool, list[tuple[str, int]]] = {False: [], True: []}
    for mask, level, crowd in zip(image.truth.masks, image.found_levels, image.truth.crowd, strict=True):
        true[bool(crowd)].append((outline(mask, tolerance), int(level)))
    return Picture(
        name=PurePath(record["file_name"]).name,
        width=record["width"],
        height=record["height"],
        jpeg="data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii"),
        counts=image.counts(START_LEVEL),
        cells=true[False],
        crowds=[path for path, _ in true[True]],
        detections=list(zip(found, image.levels.tolist(), image.outcomes.tolist(), strict=True)),
    )


def outline(mask: Rle, tolerance: float) -> str:
    """The borders of a mask, holes too, as an SVG path through the centres of its outermost pixels.

    Args:
        tolerance: how far the path may be from the border, in pixels.

    Returns:
        Whole numbers, the pixel in column x and row y being at (x, y); "" for an empty mask.
    """
    left, top, width, height = (math.ceil(side) for side in mask_util.toBbox(mask))
    if not width:
        return ""
    cut = np.ascontiguousarray(mask_util.decode(mask)[top : top + height, left : left + width])
    contours, _ = cv2.findContours(cut, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    return "".join(_path(cv2.approxPolyDP(contour, tolerance, True)[:, 0]) for contour in contours)


def _path(points: np.ndarray) -> str:
    """Closed, in steps: they are shorter than coordinates."""
    (x, y), steps = points[0].tolist(), np.diff(points, axis=0).tolist()
    return f"M{x} {y}" + "".join(f"l{dx} {dy}" if dy >= 0 else f"l{dx}{dy}" for dx, dy in steps) + "z"
