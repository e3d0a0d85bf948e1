"""COCO's precision and recall from IoUs, as pycocotools' COCOeval has them, to the last tie.

`match` decides on one image at a time and keeps some bytes a detection; `accumulate` makes precision and recall of the
matches of all images; `Summary` reads off the numbers that people compare.

By hand, of an image with two cells. The rows are detections of falling score, their numbers IoUs with the cells:

>>> def score(*ious):
...     ious = np.array(ious).reshape(-1, 2)
...     given = np.linspace(1, 0.1, len(ious)), np.ones(len(ious)), np.ones(2), np.zeros(2, bool), [(0, 1e10)]
...     matches, _ = match(ious, *given)
...     found = accumulate([matches], areas=1, max_dets=[100])
...     ap50, ap = found.precision[0].mean(), found.precision.mean()
...     return f"AP50 {ap50:.4f}, AP {ap:.4f}, AR50 {found.recall[0, 0, 0]:g}, AR {found.recall.mean():g}"

Perfect, and empty:

>>> score([1, 0], [0, 1])
'AP50 1.0000, AP 1.0000, AR50 1, AR 1'
>>> score()
'AP50 0.0000, AP 0.0000, AR50 0, AR 0'

One cell right, the other shifted to an IoU of 3/5, which reaches three of ten thresholds. With half of the cells found,
51 of the 101 recalls are reached, from 0 to 0.50:

>>> score([1, 0], [0, 3 / 5]), f"{(3 + 7 * 51 / 101) / 10:.4f}"
('AP50 1.0000, AP 0.6535, AR50 1, AR 0.65', '0.6535')

The first cell split into halves, each of an IoU of 1/2: a tie, which counts as reached at that threshold alone. The
half of the higher score has the cell, the other is false; where it comes last it does no harm, before the other cell it
takes a third of the precision at the recalls from 0.51 on. At the other nine thresholds both halves are false:

>>> score([1 / 2, 0], [0, 1], [1 / 2, 0]), f"{(1 + 9 * 51 / 101 / 2) / 10:.4f}"
('AP50 1.0000, AP 0.3272, AR50 1, AR 0.55', '0.3272')
>>> score([1 / 2, 0], [1 / 2, 0], [0, 1])[:11], f"{(51 + 50 * 2 / 3) / 101:.4f}"
('AP50 0.8350', '0.8350')

Merged: one detection on both cells, of an IoU of 4/9 with each, or of just 1/2, which finds one of them:

>>> score([4 / 9, 4 / 9])
'AP50 0.0000, AP 0.0000, AR50 0, AR 0'
>>> score([1 / 2, 1 / 2]), f"{51 / 101:.4f}"
('AP50 0.5050, AP 0.0505, AR50 0.5, AR 0.05', '0.5050')
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit

# COCO's 0.50:0.05:0.95 and 0:0.01:1.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# COCO's largest area, 1e5 squared.
LARGEST = 1e10

_PERCENT_THRESHOLDS = np.round(100 * IOU_THRESHOLDS).astype(int).tolist()

AreaRanges = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Matches:
    """What became of the detections of an image in a category; 24 bytes each with four area ranges.

    Attributes:
        scores: D float64, descending.
        hits: D x A uint16, for each area range a bit for each threshold: the detection found a cell that counts.
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
) -> tuple[Matches, np.ndarray]:
    """Matches in order of score: each detection takes the free cell of the highest IoU, if it reaches the threshold.

    Cells that do not count (crowds, and those out of the area range) are taken only where no other is to be had; a
    crowd may be taken again and again. Of equal IoUs the last cell is taken, as pycocotools has it.

    Args:
        ious: D x G float64; for crowds, the intersection's share of the detection.
        scores: D float64, descending.
        areas: D float64, square pixels. true_areas: G float64.
        crowd: G bool.
        area_ranges: lowest and highest area that counts; both count.

    Returns:
        The matches; and D int64, the cell that counts that each detection found at the lowest threshold in the first area
        range, -1 for none.
    """
    uncounted = _outside(true_areas, area_ranges) | crowd
    # Transposed, as pycocotools' IoUs lie in memory.
    reached = np.flatnonzero(IOU_THRESHOLDS[0] <= ious.T)
    cells, detections = np.divmod(reached, len(scores))
    order = np.argsort(detections, kind="stable")
    cells, detections = cells[order], detections[order]
    ends = np.searchsorted(detections, np.arange(len(scores)), side="right")
    outside = _outside(areas, area_ranges).T
    hits, neutral, partners = _match(cells, ious[detections, cells], ends, crowd, uncounted, np.ascontiguousarray(outside))
    return Matches(scores, hits, neutral, np.count_nonzero(~uncounted, axis=1)), partners


def read_bit(packed: np.ndarray, area: int, threshold: int) -> np.ndarray:
    """D bool: of an area range and a threshold, in the D x A numbers of Matches."""
    return packed[:, area] >> threshold & 1 == 1


def _outside(areas: np.ndarray, area_ranges: AreaRanges) -> np.ndarray:
    """A x N bool."""
    return np.array([(areas < low) | (areas > high) for low, high in area_ranges])


@njit(cache=True, nogil=True)
def _match(
    cells: np.ndarray, ious: np.ndarray, ends: np.ndarray, crowd: np.ndarray, uncounted: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, neutral and partners, as of `match`.

    Args:
        cells: P int64, of each pair of a detection and a cell that reaches a threshold, by detection and cell.
        ious: P float64.
        ends: D int64, where the pairs of each detection end.
        uncounted: A x G bool. outside: D x A bool.
    """
    hits = np.zeros(outside.shape, np.uint16)
    neutral = outside * np.uint16((1 << len(IOU_THRESHOLDS)) - 1)
    partners = np.full(len(ends), -1)
    taken = np.zeros((len(uncounted), len(IOU_THRESHOLDS), len(crowd)), np.bool_)
    start = 0
    for detection, end in enumerate(ends):
        for area in range(len(uncounted) if end > start else 0):
            for level, threshold in enumerate(IOU_THRESHOLDS):
                best = -1
                for pair in range(start, end):
                    cell = cells[pair]
                    if ious[pair] < threshold or (taken[area, level, cell] and not crowd[cell]):
                        continue
                    worse = uncounted[area, cell] - uncounted[area, cells[best]]
                    if best < 0 or worse < 0 or (worse == 0 and ious[pair] >= ious[best]):
                        best = pair
                if best < 0:
                    continue
                taken[area, level, cells[best]] = True
                # Where a cell was found, the detection's own area does not matter.
                neutral[detection, area] &= ~np.uint16(1 << level)
                if uncounted[area, cells[best]]:
                    neutral[detection, area] |= np.uint16(1 << level)
                else:
                    hits[detection, area] |= np.uint16(1 << level)
                    if area == level == 0:
                        partners[detection] = cells[best]
        start = end
    return hits, neutral, partners


@dataclass(frozen=True)
class Scores:
    """From 0 to 1, NaN where no cell counts.

    Attributes:
        precision: T x R x A, IoU thresholds x recalls x area ranges: the highest at this recall or a higher one.
        recall: T x A x M, with at most so many detections an image.
    """

    precision: np.ndarray
    recall: np.ndarray


def accumulate(images: Sequence[Matches], areas: int, max_dets: Sequence[int]) -> Scores:
    """Precision and recall over images, in one category.

    Args:
        images: in the order that decides between equal scores; precision counts all their detections.
        areas: number of area ranges that they were matched with.
        max_dets: limits on detections an image, for recall.
    """
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), areas), np.nan)
    recall = np.full((len(IOU_THRESHOLDS), areas, len(max_dets)), np.nan)
    if not images:
        return Scores(precision, recall)
    cells = np.sum([image.cells for image in images], axis=0)
    scores = np.concatenate([image.scores for image in images])
    order = np.argsort(-scores, kind="stable")
    hits, neutral = (np.concatenate([getattr(image, name) for image in images])[order] for name in ("hits", "neutral"))
    place = np.concatenate([np.arange(len(image.scores)) for image in images])[order]
    for area in np.flatnonzero(cells):
        for threshold in range(len(IOU_THRESHOLDS)):
            hit = read_bit(hits, area, threshold)
            wrong = ~hit & ~read_bit(neutral, area, threshold)
            precision[threshold, :, area] = _precision(hit, wrong, cells[area])
            recall[threshold, area] = [hit[place < limit].sum() / cells[area] for limit in max_dets]
    return Scores(precision, recall)


def _precision(hit: np.ndarray, wrong: np.ndarray, cells: int) -> np.ndarray:
    """At each of RECALLS; 0 at those that are not reached."""
    # Between hits precision falls.
    false = np.cumsum(wrong)[hit]
    right = np.arange(1, len(false) + 1)
    precision = right / (false + right + np.spacing(1))
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return highest[np.searchsorted(right / cells, RECALLS, side="left")]


@dataclass(frozen=True)
class Summary:
    """How to read precision and recall.

    Attributes:
        max_dets: the limits on detections an image that recall was measured with.
        area_names: of the area ranges after the first, which is all areas.
    """

    max_dets: Sequence[int]
    area_names: Sequence[str]

    def overall(self, categories: Sequence[Scores]) -> dict[str, float]:
        """Means over categories, which are one or more; NaN where no cell counts."""
        precision = np.stack([scores.precision for scores in categories])
        recall = np.stack([scores.recall for scores in categories])
        areas = list(enumerate(self.area_names, start=1))
        values = {"AP": _percent(precision[..., 0])}
        values |= {f"AP{iou}": _percent(precision[:, _PERCENT_THRESHOLDS.index(iou), :, 0]) for iou in (50, 75)}
        values |= {f"AP{name}": _percent(precision[..., area]) for area, name in areas}
        values |= {f"AR{limit}": _percent(recall[:, :, 0, index]) for index, limit in enumerate(self.max_dets)}
        values |= {f"AR{name}": _percent(recall[:, :, area, -1]) for area, name in areas}
        values["AFNR"] = 100 - values[f"AR{self.max_dets[-1]}"]
        for index, iou in enumerate(_PERCENT_THRESHOLDS):
            values[f"precision-IoU{iou}"] = _percent(precision[:, index, :, 0])
            values[f"recall-IoU{iou}"] = _percent(recall[:, index, 0, -1])
        return values

    def of_group(self, name: str, categories: Sequence[Scores]) -> dict[str, float]:
        """The main numbers of a category or of a type of cells, each name with "-" and the group's at its end."""
        values = self.overall(categories)
        return {f"{metric}-{name}": values[metric] for metric in self.group_metrics}

    @property
    def group_metrics(self) -> list[str]:
        return ["AP", "AP50", "AP75", f"AR{self.max_dets[-1]}", "AFNR"]


def area_names(limits: Sequence[float]) -> list[str]:
    """s, m and l for the ranges between two limits, else their bounds.

    >>> area_names([324, 961])
    ['s', 'm', 'l']
    >>> area_names([50])
    ['_0_50', '_50_inf']
    """
    if len(limits) == 2:
        return ["s", "m", "l"]
    return [f"_{low:g}_{high:g}" for low, high in pairwise([0, *limits, float("inf")])]


def _percent(values: np.ndarray) -> float:
    """Mean of what is defined."""
    defined = values[~np.isnan(values)]
    return float(100 * defined.mean()) if defined.size else float("nan")
