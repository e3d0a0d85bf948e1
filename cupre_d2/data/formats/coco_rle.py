"""COCO's run-length encoding, decoded with the checks that pycocotools leaves out: it reads and writes past its memory."""

import reprlib
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

# A compressed number has five bits a character, so seven hold more than any image has pixels.
_MAX_CHARACTERS = 7
_FIRST, _LAST = 48, 111
_MORE, _SIGN = 0x20, 0x10
# pycocotools counts pixels in 32 bits.
_MAX_PIXELS = 2**32 - 1


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
