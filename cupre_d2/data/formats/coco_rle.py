"""COCO's run-length encoding, decoded with the checks that pycocotools leaves out: it reads and writes past its memory."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_util

# A compressed number has five bits a character, so seven hold more than any image has pixels.
_MAX_CHARACTERS = 7
_FIRST, _LAST = 48, 111
_MORE, _SIGN = 0x20, 0x10


def compress_rle(rle: dict[str, Any], height: int, width: int) -> str:
    """The compressed counts of an RLE, checked.

    Args:
        rle: size [height, width] and counts, a compressed string or a list of run lengths.

    Raises:
        ValueError: the size is not the image's, or the counts are malformed or do not add up to its pixels; the message
            names the field and what was expected.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"field segmentation.size: {size}; expected its image's [{height}, {width}]")
    if isinstance(counts, str):
        try:
            lengths = decode_counts(counts)
        except ValueError:
            lengths = np.array([-1])
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count <= height * width for count in counts):
        lengths = np.array(counts, dtype=np.int64)
    else:
        lengths = np.array([-1])
    if not len(lengths) or lengths.min() < 0 or lengths.sum() != height * width:
        raise ValueError(
            f"field segmentation.counts: expected a compressed string, or run lengths that add up to {height * width}"
        )
    if isinstance(counts, str):
        return counts
    return mask_util.frPyObjects({"size": size, "counts": lengths.tolist()}, height, width)["counts"].decode("ascii")


def decode_counts(text: str) -> np.ndarray:
    """Run lengths, int64, of a compressed string; the first is background's.

    A number is written five bits a character, the low ones first, in two's complement; from the fourth on it is the
    difference to the last but one.

    Raises:
        ValueError: it is no such string.
    """
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
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


def rle_area(counts: str) -> int:
    """Pixels of a mask, given checked counts."""
    return int(decode_counts(counts)[1::2].sum())


def rle_box(counts: str, height: int, width: int) -> list[float]:
    """XYWH in pixels of a mask, given checked counts."""
    return mask_util.toBbox({"size": [height, width], "counts": counts}).tolist()
