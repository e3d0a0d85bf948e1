"""From pixels to annotations: run lengths made in the window around an instance, never of a whole image of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util
from scipy import ndimage
from skimage.measure import label

from cupre_d2.data.image_files import read_raster
from cupre_d2.errors import DatasetError


def mask_to_annotation(mask: np.ndarray) -> dict[str, Any] | None:
    """Annotation (RLE with str counts, XYWH box in pixels, category 0) of an HxW bool mask; None if it is empty."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    window = slice(top, top + height), slice(left, left + width)
    return _annotation(mask[window], window, mask.shape) if width else None


def labels_to_annotations(labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """One annotation for each value but 0 of an HxW array of whole numbers, in order of value.

    An instance keeps its parts and holes; see `mask_to_annotation` for what an annotation is.
    """
    values, consecutive = np.unique(labels, return_inverse=True)
    consecutive = consecutive.reshape(labels.shape) + int(values[0] != 0)
    for value, window in enumerate(ndimage.find_objects(consecutive), start=1):
        yield _annotation(consecutive[window] == value, window, labels.shape)


def read_mask(file: Path, page: int | None = None) -> np.ndarray:
    """HxW bool: True where any channel but transparency is not 0.

    Raises:
        DatasetError: see `image_files.read_raster`.
    """
    raster = read_raster(file, page, stored=True)
    return (raster.samples[:, :, :-1] if raster.alpha else raster.samples).any(axis=2)


def read_labels(file: Path, page: int | None = None) -> np.ndarray:
    """HxW array of whole numbers as they are stored, 0 for background; palettes keep their indices.

    Raises:
        DatasetError: it cannot be read, or is not one channel of whole numbers from 0 on.
    """
    samples = read_raster(file, page, stored=True).samples
    if samples.shape[2] != 1 or samples.dtype.kind not in "bui" or samples.min() < 0:
        raise DatasetError(
            f"{file}: label image of shape {samples.shape} and type {samples.dtype}; "
            "expected one channel of 8, 16 or 32-bit whole numbers, 0 for background"
        )
    return samples[:, :, 0]


def components(foreground: np.ndarray) -> np.ndarray:
    """Label image of the connected parts of an HxW mask; pixels that touch at a corner are connected."""
    return label(foreground, connectivity=2)


def check_shape(file: Path, shape: tuple[int, ...], height: int, width: int) -> None:
    """
    Raises:
        DatasetError: a mask has another size than its image.
    """
    if shape != (height, width):
        found = f"{shape[1]}x{shape[0]}"
        raise DatasetError(f"{file}: of {found} pixels; expected the size of its image, {width}x{height}")


def _annotation(crop: np.ndarray, window: tuple[slice, ...], shape: tuple[int, ...]) -> dict[str, Any]:
    """`crop` is the instance in its window, which is tight."""
    rows, columns = window
    height, width = shape
    return {
        "bbox": [float(columns.start), float(rows.start), float(crop.shape[1]), float(crop.shape[0])],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": _encode(crop, rows.start, columns.start, height, width),
        "category_id": 0,
        "iscrowd": 0,
    }


def _encode(crop: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """COCO's RLE: runs of an image column by column, the first of background."""
    columns, rows = np.nonzero(crop.T)
    pixels = (columns + left) * height + rows + top
    starts = np.flatnonzero(np.diff(pixels, prepend=-2) != 1)
    ends = np.append(pixels[starts[1:] - 1], pixels[-1]) + 1
    # Where each run of background or of the instance begins; the last one ends with the image.
    borders = np.stack([pixels[starts], ends], axis=1).ravel()
    counts = np.diff(borders, prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    rle = mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
