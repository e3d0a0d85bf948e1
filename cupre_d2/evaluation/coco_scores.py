"""COCO's precision and recall from the matches of images; the numbers of pycocotools' COCOeval.accumulate."""

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
