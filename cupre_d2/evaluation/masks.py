"""Masks as COCO's run-length encodings (RLE), and as label images."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

Rle = dict[str, Any]


def to_rle(segmentation: Mapping[str, Any] | Sequence[Sequence[float] | np.ndarray] | None, height: int, width: int) -> Rle:
    """Polygons, or an RLE of any of COCO's kinds, as one compressed RLE.

    Raises:
        ValueError: neither, or an RLE of another size than height x width.
    """
    if not segmentation:
        raise ValueError("is missing or empty")
    if isinstance(segmentation, Mapping):
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(f"is an RLE of size {segmentation.get('size')} for an image of {[height, width]}")
        if isinstance(segmentation["counts"], str | bytes):
            return dict(segmentation)
        return mask_util.frPyObjects(dict(segmentation), height, width)
    try:
        parts = mask_util.frPyObjects(list(segmentation), height, width)
    except Exception as error:  # pycocotools raises bare Exceptions.
        raise ValueError(f"is no list of polygons ({error})") from error
    return parts[0] if len(parts) == 1 else mask_util.merge(parts)


def encode_mask(mask: np.ndarray) -> Rle:
    """A mask, H x W bool, as the compressed RLE that pycocotools.mask.encode makes of it, in a fourth of the time.

    Only the part with the cell is read column by column, as RLE wants it.
    """
    height, width = mask.shape
    left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    cell = np.zeros((columns, rows + 2), np.int8)
    cell[:, 1:-1] = mask[top : top + rows, left : left + columns].T
    column, row = np.nonzero(np.diff(cell))
    # Starts and ends take turns, as a column of zeros between two columns of the cell ends every run.
    borders = (left + column) * height + top + row
    # A run to the last row that goes on in the first row of the next column is one.
    joint = np.flatnonzero(borders[1:-1:2] == borders[2::2])
    borders = np.delete(borders, np.concatenate([2 * joint + 1, 2 * joint + 2]))
    counts = np.diff(borders, prepend=0, append=height * width)
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]
    return mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def with_text(rle: Mapping[str, Any]) -> Rle:
    """The RLE with counts as str, as JSON needs it."""
    counts = rle["counts"]
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def paint(rles: Sequence[Mapping[str, Any]], scores: Sequence[float] | np.ndarray, height: int, width: int) -> np.ndarray:
    """A label image, H x W int32: mask k has the value k + 1, and where masks overlap, the one with the highest score.

    Of equal scores the first wins. A mask that others hide altogether is not in the image.
    """
    labels = np.zeros(height * width, np.int32)
    for index in np.argsort(-np.asarray(scores, np.float64), kind="stable")[::-1].tolist():
        labels[pixels(rles[index])] = index + 1
    return labels.reshape(width, height).T


def pixels(rle: Mapping[str, Any]) -> np.ndarray:
    """The pixels of a mask, int64: column * H + row of each, ascending."""
    return np.flatnonzero(mask_util.decode(rle).view(bool).ravel(order="F"))
