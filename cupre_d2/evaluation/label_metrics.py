"""What biologists report of label images: matches at an IoU, panoptic quality, AJI, the DSB2018 score.

A label image is H x W of whole numbers: 0 is background, every other value one cell. No metric here knows scores.

Where definitions leave a choice: an image with neither true nor predicted cells is perfect (1); where only one of the two
is without cells, every ratio is 0; the mean IoU of matches is NaN without a match. Whether an IoU of just the threshold
is a match must be said: `strict` is > (DSB2018, panoptic quality), else >= (StarDist, Cellpose); it is decided in whole
numbers, not in floats.

>>> truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2]])
>>> def at_half(predicted, strict=False):
...     found = match(overlap(truth, np.array([predicted])), 0.5, strict)
...     return found.tp, found.fp, found.fn

Perfect, whatever the numbers of the labels; and empty:

>>> at_half([7, 7, 7, 7, 0, 3, 3, 3, 3]), at_half([0, 0, 0, 0, 0, 0, 0, 0, 0])
((2, 0, 0), (0, 0, 2))

One cell shifted to an IoU of 3/5, one to 1/7:

>>> at_half([0, 1, 1, 1, 1, 2, 2, 2, 2]), at_half([4, 4, 4, 4, 0, 0, 0, 0, 2])
((2, 0, 0), (1, 1, 1))

Split into halves, each of an IoU of 1/2: a tie, where one half may have the cell but not both; and merged:

>>> at_half([1, 1, 3, 3, 0, 2, 2, 2, 2]), at_half([1, 1, 3, 3, 0, 2, 2, 2, 2], strict=True)
((2, 1, 0), (1, 2, 1))
>>> at_half([1, 1, 1, 1, 1, 1, 1, 1, 1])
(0, 1, 2)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from cupre_d2.evaluation.cells import pixels

# Of the DSB2018 score: 0.50:0.05:0.95.
DSB2018_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


@dataclass(frozen=True)
class Overlap:
    """How K true and L predicted cells lie on each other.

    Attributes:
        true_areas: K int64, pixels. predicted_areas: L int64.
        true: P int64, index of the true cell of each pair that shares a pixel. predicted: P int64.
        shared: P int64, pixels.
    """

    true_areas: np.ndarray
    predicted_areas: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    shared: np.ndarray

    @property
    def unions(self) -> np.ndarray:
        """P int64, pixels."""
        return self.true_areas[self.true] + self.predicted_areas[self.predicted] - self.shared

    @property
    def ious(self) -> np.ndarray:
        """P float64."""
        return self.shared / self.unions


@dataclass(frozen=True)
class Counts:
    """True positives, false positives, false negatives, and the sum of the IoUs of the first. Those of images add up."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_sum: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)

    @property
    def precision(self) -> float:
        return self._ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return self._ratio(self.tp, self.tp + self.fn)

    @property
    def accuracy(self) -> float:
        """StarDist's accuracy, Cellpose's and Kaggle's average precision: tp / (tp + fp + fn)."""
        return self._ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def f1(self) -> float:
        return self._ratio(self.tp, self.tp + (self.fp + self.fn) / 2)

    @property
    def panoptic_quality(self) -> float:
        """F1 times the mean IoU; the published definition is that of strict matches at 0.5."""
        return self._ratio(self.iou_sum, self.tp + (self.fp + self.fn) / 2)

    @property
    def mean_iou(self) -> float:
        """Of the matches; NaN without any."""
        return self.iou_sum / self.tp if self.tp else float("nan")

    def _ratio(self, part: float, whole: float) -> float:
        if self.tp + self.fp + self.fn == 0:
            return 1.0
        return part / whole if whole else 0.0


def overlap(truth: np.ndarray, predicted: np.ndarray) -> Overlap:
    """Of two label images of one size; cells are numbered by label.

    Raises:
        ValueError: they are not of one size, or not of whole numbers.
    """
    for labels in (truth, predicted):
        if labels.dtype.kind not in "biu":
            raise ValueError(f"label image of {labels.dtype}; expected whole numbers")
    if truth.shape != predicted.shape:
        raise ValueError(f"label images of {truth.shape} and {predicted.shape}; expected one size")
    values, indices = np.unique(truth[truth != 0], return_inverse=True)
    return _tabulate(indices, len(values), predicted[truth != 0], predicted)


def overlap_of_masks(masks: Sequence[Mapping[str, Any]], predicted: np.ndarray) -> Overlap:
    """Of true cells, as RLEs that may overlap each other, and a predicted label image of their size."""
    places = [pixels(mask) for mask in masks]
    indices = np.repeat(np.arange(len(masks)), [len(place) for place in places])
    under = predicted.ravel(order="F")[np.concatenate([np.zeros(0, np.int64), *places])]
    return _tabulate(indices, len(masks), under, predicted)


def _tabulate(true_indices: np.ndarray, count: int, labels: np.ndarray, predicted: np.ndarray) -> Overlap:
    """From the pixels of true cells, each with its cell's index and the predicted label there."""
    values, areas = np.unique(predicted[predicted != 0], return_counts=True)
    hit = labels != 0
    # A pair is one number, so that one sort counts all of them.
    pairs = true_indices[hit] * max(len(values), 1) + np.searchsorted(values, labels[hit])
    found, shared = np.unique(pairs, return_counts=True)
    true, of_predicted = np.divmod(found, max(len(values), 1))
    return Overlap(np.bincount(true_indices, minlength=count), areas, true, of_predicted, shared)


def match(cells: Overlap, threshold: float, strict: bool) -> Counts:
    """True and predicted cells one to one: as many pairs as can be, and of those ways the one of the highest sum of IoUs.

    Above 0.5 there is but one way where cells do not overlap.

    Args:
        threshold: IoU that a match must reach, or exceed if strict; above 0 and at most 1, taken to six decimals.

    Raises:
        ValueError: another threshold.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"IoU threshold {threshold}; expected more than 0 and at most 1")
    limit = Fraction(threshold).limit_denominator(10**6)
    reached, needed = cells.shared * limit.denominator, cells.unions * limit.numerator
    pairs = np.flatnonzero(reached > needed if strict else reached >= needed)
    ious = cells.ious[pairs[_one_to_one(cells.true[pairs], cells.predicted[pairs], cells.ious[pairs])]]
    tp = len(ious)
    return Counts(tp, len(cells.predicted_areas) - tp, len(cells.true_areas) - tp, float(ious.sum()))


def _one_to_one(true: np.ndarray, predicted: np.ndarray, ious: np.ndarray) -> np.ndarray:
    """Indices of pairs that share no cell."""
    contested = (np.bincount(true)[true] > 1) | (np.bincount(predicted)[predicted] > 1) if len(true) else true > 0
    alone, others = np.flatnonzero(~contested), np.flatnonzero(contested)
    _, rows = np.unique(true[others], return_inverse=True)
    _, columns = np.unique(predicted[others], return_inverse=True)
    if not len(others):
        return alone
    index = np.full((rows.max() + 1, columns.max() + 1), -1)
    index[rows, columns] = others
    # A pair more outweighs any gain in IoU.
    gain = np.zeros(index.shape)
    gain[rows, columns] = 1 + ious[others] / (2 * len(others))
    chosen = index[linear_sum_assignment(gain, maximize=True)]
    return np.concatenate([alone, chosen[chosen >= 0]])


def dsb2018_score(cells: Overlap) -> float:
    """The score of an image in the Data Science Bowl 2018: the mean of the accuracy at IoU > 0.50, 0.55, …, 0.95.

    The score of a data set is the mean over its images.

    >>> truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2]])
    >>> dsb2018_score(overlap(truth, truth)), dsb2018_score(overlap(0 * truth, 0 * truth))
    (1.0, 1.0)
    >>> dsb2018_score(overlap(truth, 0 * truth)), dsb2018_score(overlap(0 * truth, truth))
    (0.0, 0.0)

    One cell right, the other of an IoU of 3/4: that is above five thresholds, not above 0.75 itself.

    >>> f"{dsb2018_score(overlap(truth, np.array([[0, 1, 1, 1, 0, 2, 2, 2, 2]]))):.4f} = {(5 * 1 + 5 / 3) / 10:.4f}"
    '0.6667 = 0.6667'
    """
    return float(np.mean([match(cells, threshold, strict=True).accuracy for threshold in DSB2018_THRESHOLDS]))


def aggregated_jaccard_index(cells: Overlap) -> float:
    """AJI of an image (Kumar et al., IEEE TMI 2017).

    Each true cell goes with the predicted one of the highest IoU, of equal ones the first, which other true cells may go
    with too. The shared pixels of these pairs, divided by their unions and the areas of all cells without a partner.

    >>> truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2]])
    >>> aggregated_jaccard_index(overlap(truth, truth)), aggregated_jaccard_index(overlap(0 * truth, 0 * truth))
    (1.0, 1.0)
    >>> aggregated_jaccard_index(overlap(truth, 0 * truth)), aggregated_jaccard_index(overlap(0 * truth, truth))
    (0.0, 0.0)

    Halves of a cell: 2 of 4 pixels with one of them, the other without a partner; one for both cells: 8 of 9 + 9.

    >>> aggregated_jaccard_index(overlap(truth, np.array([[1, 1, 3, 3, 0, 2, 2, 2, 2]]))) == (2 + 4) / (4 + 4 + 2)
    True
    >>> aggregated_jaccard_index(overlap(truth, np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1]]))) == 8 / 18
    True
    """
    if not len(cells.true_areas) and not len(cells.predicted_areas):
        return 1.0
    order = np.lexsort((cells.predicted, -cells.ious, cells.true))
    # The first pair of each true cell.
    best = order[np.unique(cells.true[order], return_index=True)[1]]
    lost = np.delete(cells.true_areas, cells.true[best]).sum()
    unused = np.delete(cells.predicted_areas, cells.predicted[best]).sum()
    return float(cells.shared[best].sum() / (cells.unions[best].sum() + lost + unused))
