"""Which detection found which cell, for pictures that follow a threshold on the score.

The evaluator keeps counts of matches; pictures need the pairs, which its `match` hands out at an IoU of 0.5. What a
detection takes depends on those of higher scores alone. So the detections of some score and above have the same matches
whether or not those below take part, and one matching serves every threshold: a detection that is hidden gives back the
cell that it found, and no other detection changes its partner.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupre_d2.evaluation.cells import Detections, TrueCells, overlaps
from cupre_d2.evaluation.coco_metrics import IOU_THRESHOLDS, LARGEST, match, read_bit

# The thresholds on the score that the page can be set to.
SCORE_STEPS = np.arange(101) / 100
IOU = float(IOU_THRESHOLDS[0])
# Level of a cell that no detection finds.
NEVER = -1

HIT, FALSE, NEUTRAL = range(3)


@dataclass(frozen=True)
class Counts:
    """Cells found, cells missed, detections that found none."""

    found: int
    missed: int
    false: int

    @property
    def errors(self) -> int:
        return self.missed + self.false


@dataclass(frozen=True)
class ImageMatch:
    """An image's cells and detections, and who found whom. Level k is a threshold of SCORE_STEPS[k] on the score.

    Attributes:
        record: Detectron2's.
        truth: G cells.
        detections: D, of descending score.
        levels: D int64, the highest level at which the detection still counts.
        outcomes: D int64: HIT found a cell, FALSE found none, NEUTRAL found a crowd.
        found_levels: G int64, the highest level at which the cell is still found; NEVER for one that is not, and for
            crowds, which count neither as found nor as missed.
    """

    record: Mapping[str, Any]
    truth: TrueCells
    detections: Detections
    levels: np.ndarray
    outcomes: np.ndarray
    found_levels: np.ndarray

    def counts(self, level: int) -> Counts:
        found = int((self.found_levels >= level).sum())
        false = int(((self.outcomes == FALSE) & (self.levels >= level)).sum())
        return Counts(found, int((~self.truth.crowd).sum()) - found, false)


def match_image(record: Mapping[str, Any], truth: TrueCells, detections: Detections, use_cats: bool) -> ImageMatch:
    """Matches by masks; with `use_cats`, only what is of one category."""
    detections = detections.best(len(detections))
    levels = np.searchsorted(SCORE_STEPS, detections.scores, side="right") - 1
    ious = overlaps(detections, truth, "segm")
    if use_cats:
        ious = np.where(detections.categories[:, None] == truth.categories, ious, 0)
    # All areas count.
    areas = np.zeros(len(detections))
    matches, cells = match(ious, detections.scores, areas, truth.areas, truth.crowd, [(0, LARGEST)])
    hit, neutral = read_bit(matches.hits, 0, 0), read_bit(matches.neutral, 0, 0)
    found_levels = np.full(len(truth), NEVER)
    found_levels[cells[hit]] = levels[hit]
    return ImageMatch(record, truth, detections, levels, np.select([hit, neutral], [HIT, NEUTRAL], FALSE), found_levels)


class Tally:
    """All images of a data set in numbers; grows by some 20 bytes a cell.

    Attributes:
        found, false: int64, how many at each level.
    """

    def __init__(self) -> None:
        self.found, self.false = np.zeros((2, len(SCORE_STEPS)), np.int64)
        self._areas: list[np.ndarray] = []
        self._levels: list[np.ndarray] = []

    def add(self, image: ImageMatch) -> None:
        counted = ~image.truth.crowd
        self._areas.append(image.truth.areas[counted])
        self._levels.append(image.found_levels[counted])
        self.found += _at_each_level(self._levels[-1])
        self.false += _at_each_level(image.levels[image.outcomes == FALSE])

    @property
    def cells(self) -> int:
        return sum(map(len, self._areas))

    def by_cell(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each cell: its area, float64, in square pixels, and whether it is found, bool."""
        nothing = np.zeros(0)
        return np.concatenate([nothing, *self._areas]), np.concatenate([nothing, *self._levels]) >= level

    def by_image(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each image: how many cells, and how many of them are found, both int64."""
        cells = [len(levels) for levels in self._levels]
        found = [int((levels >= level).sum()) for levels in self._levels]
        return np.array(cells, np.int64), np.array(found, np.int64)


def _at_each_level(levels: np.ndarray) -> np.ndarray:
    """How many are at each level or above."""
    counted = np.bincount(levels[levels >= 0], minlength=len(SCORE_STEPS))
    return counted[::-1].cumsum()[::-1]
