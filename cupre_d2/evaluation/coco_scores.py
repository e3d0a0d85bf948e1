"""COCO's precision and recall from the matches of images; the numbers of pycocotools' COCOeval.accumulate.

By hand, of an image with two cells. The rows are detections of falling score, their numbers IoUs with the cells:

>>> from cupre_d2.evaluation.coco_matching import match
>>> def score(*ious):
...     ious = np.array(ious).reshape(-1, 2)
...     given = np.linspace(1, 0.1, len(ious)), np.ones(len(ious)), np.ones(2), np.zeros(2, bool), [(0, 1e10)]
...     found = accumulate([match(ious, *given)], areas=1, max_dets=[100])
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

import numpy as np

from cupre_d2.evaluation.coco_matching import IOU_THRESHOLDS, Matches, read_bit

# COCO's 0:0.01:1.
RECALLS = np.linspace(0, 1, 101)


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
    right, false = np.cumsum(hit, dtype=np.float64), np.cumsum(wrong, dtype=np.float64)
    precision = right / (false + right + np.spacing(1))
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return highest[np.searchsorted(right / cells, RECALLS, side="left")]
