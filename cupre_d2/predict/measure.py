"""What is measured of each cell, and the sizes of pixels that make it physical."""

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from skimage.measure import regionprops

from cupre_d2.predict.canvas import Segmentation
from cupre_d2.predict.tiling import Window

# Cells whose centres lie in one square of this side are read together.
BLOCK = 1024
# Length units of microscopes' metadata in micrometres.
MICROMETRES = {
    "nm": 1e-3,
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}

PixelSize = tuple[float, float]


def pixel_size(file: Path) -> PixelSize | None:
    """Height and width of a pixel in micrometres, as OME's or ImageJ's metadata of a TIFF have them.

    None where they do not: what other files say of resolution is meant for printers.
    """
    try:
        with tifffile.TiffFile(file, _multifile=False) as tiff:
            sides = _ome_sides(tiff.ome_metadata) if tiff.ome_metadata else _imagej_sides(tiff)
    # Metadata that are malformed are none; the image itself has been read.
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, tifffile.TiffFileError):
        return None
    return sides if sides and all(0 < side < float("inf") for side in sides) else None


def _ome_sides(metadata: str) -> PixelSize | None:
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", metadata)
    fields = {name: html.unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', pixels[0])} if pixels else {}
    if not {"PhysicalSizeX", "PhysicalSizeY"} <= fields.keys():
        return None
    y, x = (
        float(fields[f"PhysicalSize{axis}"]) * _micrometres(fields.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "YX"
    )
    return y, x


def _imagej_sides(tiff: tifffile.TiffFile) -> PixelSize | None:
    if not tiff.imagej_metadata:
        return None
    factor = _micrometres(str(tiff.imagej_metadata["unit"]).replace("\\u00B5", "µ"))
    page: Any = tiff.pages.first
    # Pixels a unit, as a fraction.
    y, x = (page.tags[f"{axis}Resolution"].value for axis in "YX")
    return factor * y[1] / y[0], factor * x[1] / x[0]


def _micrometres(unit: str) -> float:
    # Unicode has two letters that look like this.
    return MICROMETRES[unit.replace("\N{GREEK SMALL LETTER MU}", "µ")]


def measure(
    segmentation: Segmentation,
    read: Callable[[Window], np.ndarray],
    classes: Sequence[str],
    size: PixelSize | None = None,
    channels: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Measures each cell by skimage.measure.regionprops, in the cell's box; of the image only a block is read at a time.

    Args:
        segmentation: of the image.
        read: gives a part of the image, HxWxC.
        classes: names of the classes in order of "category".
        size: height and width of a pixel in micrometres.
        channels: numbers that the image's channels go by; from 0 if None.

    Returns:
        A row a cell, in the table's order: "label", "class", "score"; "area", "centroid_y", "centroid_x" (the centre of the
        first pixel being (0, 0), as scikit-image has it), the box "top", "left", "bottom", "right" (the last two are the
        first outside), "equivalent_diameter", all in pixels; "eccentricity"; "solidity"; "mean_intensity", of several
        channels "mean_intensity_0" and so on; "edge" (touches the image's border), "stitched". With a size, "area_um2",
        "centroid_y_um", "centroid_x_um" and "equivalent_diameter_um" too.
    """
    table = segmentation.table
    count = read(Window(0, 0, 1, 1)).shape[2]
    names = [f"mean_intensity_{number}" for number in channels or range(count)] if count > 1 else ["mean_intensity"]
    measured = np.full((len(table), 6 + count), np.nan)
    boxes = table[["top", "left", "bottom", "right"]].to_numpy(np.int64).reshape(-1, 4)
    blocks = (boxes[:, :2] + boxes[:, 2:]) // (2 * BLOCK)
    for places in pd.DataFrame(blocks).groupby([0, 1]).indices.values():
        top, left = (int(side) for side in boxes[places, :2].min(axis=0))
        bottom, right = (int(side) for side in boxes[places, 2:].max(axis=0))
        labels, image = np.asarray(segmentation.labels[top:bottom, left:right]), read(Window(top, left, bottom, right))
        for place, label in zip(places, table["label"].to_numpy()[places], strict=True):
            cell = tuple(slice(boxes[place, i] - start, boxes[place, i + 2] - start) for i, start in enumerate((top, left)))
            mask = (labels[cell] == label).astype(np.uint8)
            (found,) = regionprops(mask, image[cell], offset=tuple(boxes[place, :2].tolist()))
            measured[place] = (
                found.area,
                *found.centroid,
                found.equivalent_diameter_area,
                found.eccentricity,
                found.solidity,
                *np.atleast_1d(found.intensity_mean),
            )
    area, y, x, diameter, eccentricity, solidity, *intensities = measured.T
    columns = {
        "label": table["label"].to_numpy(np.int64),
        "class": [classes[category] for category in table["category"]],
        "score": table["score"].to_numpy(),
        "area": area.astype(np.int64),
        "centroid_y": y,
        "centroid_x": x,
        **{side: boxes[:, place] for place, side in enumerate(("top", "left", "bottom", "right"))},
        "equivalent_diameter": diameter,
        "eccentricity": eccentricity,
        "solidity": solidity,
        **dict(zip(names, intensities, strict=True)),
        "edge": table["edge"].to_numpy(bool),
        "stitched": table["stitched"].to_numpy(bool),
    }
    if size:
        square = area * size[0] * size[1]
        physical = {"centroid_y_um": y * size[0], "centroid_x_um": x * size[1]}
        columns |= {"area_um2": square, **physical, "equivalent_diameter_um": np.sqrt(4 / np.pi * square)}
    return pd.DataFrame(columns)
