"""COCO's matching of detections with true cells, for one image and one category at a time.

The rules are those of pycocotools' COCOeval.evaluateImg, to the last tie. It walks through all pairs for each area range
and each IoU threshold; this walks once through the few pairs that overlap enough, with area ranges and thresholds as bits
of a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

# COCO's 0.50:0.05:0.95.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_COUNT = len(IOU_THRESHOLDS)
_ALL_THRESHOLDS = (1 << _COUNT) - 1

AreaRanges = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Matches:
    """What became of the detections of an image in a category; 18 bytes each with four area ranges.

    Attributes:
        scores: D float64, descending.
        hits: D x B uint8, a bit for each area range and threshold: the detection found a cell that counts.
        neutral: as hits: it counts neither as right nor as wrong, having found a crowd or a cell of another area, or
            nothing and being of another area itself.
        cells: A int64, how many true cells count in each area range.
    """

    scores: np.ndarray
    hits: np.ndarray
    neutral: np.ndarray
    cells: np.ndarray


def match(
    ious: np.ndarray,
    scores: np.ndarray,
    areas: np.ndarray,
    true_areas: np.ndarray,
    crowd: np.ndarray,
    area_ranges: AreaRanges,
) -> Matches:
    """Matches in order of score: each detection takes the free cell of the highest IoU, if it reaches the threshold.

    Cells that do not count (crowds, and those out of the area range) are taken only where no other is to be had; a
    crowd may be taken again and again.

    Args:
        ious: D x G float64; for crowds, the intersection's share of the detection.
        scores: D float64, descending.
        areas: D float64, square pixels. true_areas: G float64.
        crowd: G bool.
        area_ranges: lowest and highest area that counts; both count.
    """
    reached_at = [_spread((1 << level) - 1, len(area_ranges)) for level in range(_COUNT + 1)]
    everything = reached_at[-1]
    uncounted = _outside(true_areas, area_ranges) | crowd
    out_of_count = _bits(uncounted)
    taken_anew = [everything if is_crowd else 0 for is_crowd in crowd.tolist()]
    taken = [0] * len(true_areas)
    hits, neutral = [0] * len(scores), _bits(_outside(areas, area_ranges))
    for detection, pairs in groupby(_pairs(ious), key=itemgetter(0)):
        candidates = [(cell, reached_at[level]) for _, cell, level in pairs]
        free = everything
        for cell, reached in candidates:
            found = reached & free & ~taken[cell] & ~out_of_count[cell]
            taken[cell] |= found
            free &= ~found
        hits[detection] = everything & ~free
        for cell, reached in candidates:
            found = reached & free & out_of_count[cell] & (~taken[cell] | taken_anew[cell])
            taken[cell] |= found
            free &= ~found
        # Where a cell was found, the detection's own area does not matter.
        neutral[detection] = (neutral[detection] & free) | (everything & ~free & ~hits[detection])
    return Matches(
        scores, _pack(hits, len(area_ranges)), _pack(neutral, len(area_ranges)), np.count_nonzero(~uncounted, axis=1)
    )


def read_bit(packed: np.ndarray, area: int, threshold: int) -> np.ndarray:
    """N bool: the bit of an area range and a threshold in the N x B numbers of Matches."""
    bit = area * _COUNT + threshold
    return (packed[:, bit // 8] >> (bit % 8)) & 1 == 1


def _pairs(ious: np.ndarray) -> list[tuple[int, int, int]]:
    """Detection, cell and number of thresholds reached, where it is any; by detection, the best cell first.

    Of equal IoUs the last cell comes first, as pycocotools has it.
    """
    detections, cells = np.nonzero(ious >= IOU_THRESHOLDS[0])
    reached = ious[detections, cells]
    order = np.lexsort((-cells, -reached, detections))
    levels = np.searchsorted(IOU_THRESHOLDS, reached, side="right")
    return list(zip(*(column[order].tolist() for column in (detections, cells, levels)), strict=True))


def _outside(areas: np.ndarray, area_ranges: AreaRanges) -> np.ndarray:
    """A x N bool."""
    return np.array([(areas < low) | (areas > high) for low, high in area_ranges])


def _bits(flags: np.ndarray) -> list[int]:
    """A x N bool to N numbers, in which each flag stands at all thresholds of its area range."""
    steps = [[_ALL_THRESHOLDS << (area * _COUNT) if flag else 0 for flag in row] for area, row in enumerate(flags.tolist())]
    return [sum(of_one) for of_one in zip(*steps, strict=True)]


def _spread(thresholds: int, areas: int) -> int:
    """The bits of the thresholds, once for each area range."""
    return sum(thresholds << (area * _COUNT) for area in range(areas))


def _pack(numbers: Sequence[int], areas: int) -> np.ndarray:
    """N x B uint8, the lowest bits first."""
    size = -(-areas * _COUNT // 8)
    packed = b"".join(number.to_bytes(size, "little") for number in numbers)
    return np.frombuffer(packed, np.uint8).reshape(len(numbers), size)
