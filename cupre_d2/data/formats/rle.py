"""COCO's run-length encoding: made of pixels, and decoded with the checks that pycocotools leaves out.

It is made in the window around an instance, never of a whole image of it; of a malformed one pycocotools would read and
write past its memory.
"""

import reprlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util
from scipy import ndimage

# A compressed number has five bits a character, so seven hold more than any image has pixels.
_MAX_CHARACTERS = 7
_FIRST, _LAST = 48, 111
_MORE, _SIGN = 0x20, 0x10
# pycocotools counts pixels in 32 bits.
_MAX_PIXELS = 2**32 - 1


def mask_to_annotation(mask: np.ndarray) -> dict[str, Any] | None:
    """Annotation (RLE with str counts, XYWH box in pixels, category 0) of an HxW bool mask; None if it is empty."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    window = slice(top, top + height), slice(left, left + width)
    return window_to_annotation(mask[window], window, mask.shape) if width else None


def labels_to_annotations(labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """One annotation for each value but 0 of an HxW array of whole numbers, in order of value.

    An instance keeps its parts and holes; see `mask_to_annotation` for what an annotation is.
    """
    values, consecutive = np.unique(labels, return_inverse=True)
    consecutive = consecutive.reshape(labels.shape) + int(values[0] != 0)
    for value, window in enumerate(ndimage.find_objects(consecutive), start=1):
        yield window_to_annotation(consecutive[window] == value, window, labels.shape)


def window_to_annotation(crop: np.ndarray, window: tuple[slice, ...], shape: tuple[int, ...]) -> dict[str, Any]:
    """As `mask_to_annotation`, of an HxW bool mask of no more than the instance's box, `window`, in an image of `shape`."""
    rows, columns = window
    rle = encode(crop, rows.start, columns.start, *shape)
    return {
        "bbox": [float(columns.start), float(rows.start), float(crop.shape[1]), float(crop.shape[0])],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
        "category_id": 0,
        "iscrowd": 0,
    }


def encode(crop: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """COCO's RLE, compressed, of a bool mask in its window: runs of an image column by column, the first of background."""
    cell = np.zeros((crop.shape[1], crop.shape[0] + 2), np.int8)
    cell[:, 1:-1] = crop.T
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


def check_rle(rle: dict[str, Any], height: int, width: int) -> tuple[str, np.ndarray]:
    """The counts of an RLE, compressed, and its run lengths, int64; the first is background's.

    Args:
        rle: size [height, width] and counts, a compressed string or a list of run lengths.

    Raises:
        ValueError: the size is not the image's, or the counts are malformed or do not add up to its pixels; the message
            names the field and what was expected.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"field segmentation.size: {reprlib.repr(size)}; expected its image's [{height}, {width}]")
    pixels = height * width
    if pixels > _MAX_PIXELS:
        raise ValueError(f"field segmentation: RLE of {pixels} pixels; expected at most {_MAX_PIXELS}")
    lengths = _lengths(counts, pixels)
    if lengths is None or lengths.min() < 0 or lengths.max() > pixels or lengths.sum() != pixels:
        raise ValueError(f"field segmentation.counts: expected a compressed string, or run lengths that add up to {pixels}")
    if isinstance(counts, str):
        return counts, lengths
    return mask_util.frPyObjects({"size": size, "counts": lengths.tolist()}, height, width)["counts"].decode(), lengths


def _lengths(counts: Any, pixels: int) -> np.ndarray | None:
    if isinstance(counts, str):
        try:
            return decode_counts(counts)
        except ValueError:
            return None
    if isinstance(counts, list) and counts and all(type(count) is int and 0 <= count <= pixels for count in counts):
        return np.array(counts, np.int64)
    return None


def decode_counts(text: str) -> np.ndarray:
    """Run lengths, int64, of a compressed string, as it has them: they may be negative or of any sum.

    A number is written five bits a character, the low ones first, in two's complement; from the fourth on it is the
    difference to the last but one.

    Raises:
        ValueError: it is no such string.
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64)
    if not len(codes) or codes.min() < _FIRST or codes.max() > _LAST:
        raise ValueError("characters out of range")
    codes -= _FIRST
    ends = np.flatnonzero((codes & _MORE) == 0)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("ends within a number")
    starts = np.append(0, ends[:-1] + 1)
    if (ends - starts >= _MAX_CHARACTERS).any():
        raise ValueError("number too long")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    numbers = np.add.reduceat((codes & (_MORE - 1)) << shifts, starts)
    numbers -= np.where(codes[ends] & _SIGN, np.int64(1) << (shifts[ends] + 5), 0)
    for parity in (1, 2):
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    return numbers


def box_of_runs(lengths: np.ndarray, height: int) -> list[float]:
    """XYWH in pixels of a mask that has some, from its checked run lengths."""
    ends = np.cumsum(lengths)[1::2]
    foreground = lengths[1::2]
    ends, foreground = ends[foreground > 0], foreground[foreground > 0]
    (left, top), (right, bottom) = np.divmod(ends - foreground, height), np.divmod(ends - 1, height)
    if (left < right).any():
        y, y_last = 0, height - 1
    else:
        y, y_last = int(top.min()), int(bottom.max())
    x = int(left[0])
    return [float(x), float(y), float(right[-1] - x + 1), float(y_last - y + 1)]
