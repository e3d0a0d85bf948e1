"""Against slow, obvious implementations, and by hand."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_util
from scipy.optimize import linear_sum_assignment

from cupre_d2.evaluation.label_metrics import (
    Counts,
    aggregated_jaccard_index,
    dsb2018_score,
    match,
    overlap,
    overlap_of_masks,
)

LABELS = hnp.arrays(np.int32, (4, 6), elements=st.sampled_from([0, 0, 1, 2, 5, 9]))


def iou(a: np.ndarray, b: np.ndarray) -> Fraction:
    return Fraction(int((a & b).sum()), int((a | b).sum()))


def cells_of(labels: np.ndarray) -> list[np.ndarray]:
    return [labels == value for value in sorted(set(labels.ravel().tolist()) - {0})]


def match_slowly(truth: list[np.ndarray], predicted: list[np.ndarray], threshold: Fraction, strict: bool) -> Counts:
    """Of all ways to match, the one of most pairs and then of the highest IoUs."""
    best = (0, Fraction(0))
    shorter, longer = sorted((truth, predicted), key=len)
    for partners in itertools.permutations(range(len(longer)), len(shorter)):
        ious = [iou(cell, longer[partner]) for cell, partner in zip(shorter, partners, strict=True)]
        found = [value for value in ious if (value > threshold if strict else value >= threshold)]
        best = max(best, (len(found), sum(found, Fraction(0))))
    return Counts(best[0], len(predicted) - best[0], len(truth) - best[0], float(best[1]))


@given(LABELS, LABELS, st.sampled_from(["1/10", "1/4", "1/3", "1/2", "3/5", "7/10", "1"]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_matches(truth: np.ndarray, predicted: np.ndarray, threshold: str, strict: bool) -> None:
    found = match(overlap(truth, predicted), float(Fraction(threshold)), strict)
    expected = match_slowly(cells_of(truth), cells_of(predicted), Fraction(threshold), strict)
    assert (found.tp, found.fp, found.fn) == (expected.tp, expected.fp, expected.fn)
    assert found.iou_sum == pytest.approx(expected.iou_sum)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_matches_as_stardist_does(seed: int, threshold: float) -> None:
    """StarDist's rule (matching.py): Hungarian, IoU >= threshold; bands of random width, so most have several partners."""
    rng = np.random.default_rng(seed)
    truth, predicted = (np.repeat(np.arange(1, 61), rng.integers(1, 15, 60))[None, :240] for _ in range(2))
    table = np.array([[float(iou(a, b)) for b in cells_of(predicted)] for a in cells_of(truth)])
    reached = table >= threshold
    assert threshold >= 0.5 or (reached.sum(0) > 1).any()
    rows, columns = linear_sum_assignment(-(reached + table / (2 * min(table.shape))))
    kept = reached[rows, columns]
    found = match(overlap(truth, predicted), threshold, strict=False)
    assert found.tp == kept.sum() > 5
    assert found.iou_sum == pytest.approx(table[rows, columns][kept].sum())
    assert (found.fp, found.fn) == (table.shape[1] - found.tp, table.shape[0] - found.tp)


def kaggle(truth: list[np.ndarray], predicted: list[np.ndarray]) -> float:
    """The competition's evaluation page, with floats as its script has them."""
    scores = []
    for threshold in np.arange(0.5, 1.0, 0.05):
        hits = [[float(iou(a, b)) > threshold for b in predicted] for a in truth]
        tp = sum(map(any, hits))
        fn = len(truth) - tp
        fp = sum(not any(column) for column in zip(*hits, strict=True)) if hits else len(predicted)
        scores.append(tp / (tp + fp + fn) if tp + fp + fn else 1)
    return float(np.mean(scores))


@given(LABELS, LABELS)
@settings(max_examples=200, deadline=None)
def test_dsb2018_score(truth: np.ndarray, predicted: np.ndarray) -> None:
    expected = kaggle(cells_of(truth), cells_of(predicted))
    assert dsb2018_score(overlap(truth, predicted)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("pixels", "thresholds_below"), [(11, 1), (12, 2), (13, 3), (14, 4), (15, 5), (19, 9), (20, 10)])
def test_an_iou_of_just_a_threshold_is_no_match_of_dsb2018(pixels: int, thresholds_below: int) -> None:
    """pixels/20 is 0.55, 0.60, …: no float is trusted with it."""
    truth, predicted = np.ones((1, 20), int), np.ones((1, 20), int)
    predicted[:, pixels:] = 0
    cells = overlap(truth, predicted)
    assert dsb2018_score(cells) == pytest.approx(thresholds_below / 10)
    assert match(cells, pixels / 20, strict=False).tp == 1
    assert match(cells, pixels / 20, strict=True).tp == 0


def aji_slowly(truth: list[np.ndarray], predicted: list[np.ndarray]) -> float:
    shared, united, used = 0, 0, set()
    for cell in truth:
        ious = [iou(cell, other) for other in predicted]
        if not any(ious):
            united += cell.sum()
            continue
        best = ious.index(max(ious))
        shared += (cell & predicted[best]).sum()
        united += (cell | predicted[best]).sum()
        used.add(best)
    united += sum(other.sum() for index, other in enumerate(predicted) if index not in used)
    return shared / united if united else 1.0


@given(LABELS, LABELS)
@settings(max_examples=200, deadline=None)
def test_aggregated_jaccard_index(truth: np.ndarray, predicted: np.ndarray) -> None:
    expected = aji_slowly(cells_of(truth), cells_of(predicted))
    assert aggregated_jaccard_index(overlap(truth, predicted)) == pytest.approx(expected, abs=1e-12)


def test_true_cells_may_overlap() -> None:
    """Two disks, one in part over the other; a label image could not hold both whole."""
    below, above = np.zeros((9, 12), np.uint8), np.zeros((9, 12), np.uint8)
    below[2:7, 1:8], above[3:8, 5:11] = 1, 1
    predicted = np.where(below, 4, 7 * above)
    masks = [mask_util.encode(np.asfortranarray(mask)) for mask in (below, above)]
    cells = overlap_of_masks(masks, predicted)
    ious = {(t, p): value for t, p, value in zip(cells.true.tolist(), cells.predicted.tolist(), cells.ious, strict=True)}
    assert ious == {
        (0, 0): 1.0,
        (1, 0): float(iou(above == 1, predicted == 4)),
        (1, 1): float(iou(above == 1, predicted == 7)),
    }
    assert match(cells, 0.5, strict=True) == Counts(2, 0, 0, 1.0 + ious[1, 1])


@given(LABELS, LABELS)
@settings(max_examples=50, deadline=None)
def test_masks_and_label_images_are_the_same(truth: np.ndarray, predicted: np.ndarray) -> None:
    masks = [mask_util.encode(np.asfortranarray(cell, np.uint8)) for cell in cells_of(truth)]
    by_masks, by_labels = overlap_of_masks(masks, predicted), overlap(truth, predicted)
    for name in ("true_areas", "predicted_areas", "true", "predicted", "shared"):
        assert getattr(by_masks, name).tolist() == getattr(by_labels, name).tolist()


def test_ratios() -> None:
    counts = Counts(3, 1, 2, 2.4)
    assert (counts.precision, counts.recall, counts.accuracy) == (3 / 4, 3 / 5, 3 / 6)
    assert (counts.f1, counts.mean_iou) == (6 / 9, pytest.approx(0.8))
    assert counts.panoptic_quality == pytest.approx(counts.f1 * counts.mean_iou)
    assert counts + Counts(1, 0, 0, 1.0) == Counts(4, 1, 2, 3.4)


@pytest.mark.parametrize(("counts", "ratio"), [(Counts(), 1), (Counts(fp=2), 0), (Counts(fn=2), 0)])
def test_ratios_of_nothing(counts: Counts, ratio: int) -> None:
    values = [counts.precision, counts.recall, counts.accuracy, counts.f1, counts.panoptic_quality]
    assert values == [ratio] * 5
    assert math.isnan(counts.mean_iou)


def test_refuses_what_is_no_label_image() -> None:
    with pytest.raises(ValueError, match="float64; expected whole numbers"):
        overlap(np.zeros((2, 2)), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\); expected one size"):
        overlap(np.zeros((2, 2), int), np.zeros((2, 3), int))
    for threshold in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected more than 0 and at most 1"):
            match(overlap(np.zeros((2, 2), int), np.zeros((2, 2), int)), threshold, strict=True)
