import numpy as np
import pytest

from cupre_d2.evaluation.cells import Detections, TrueCells
from cupre_d2.report import matching
from cupre_d2.report.matching import FALSE, HIT, SCORE_STEPS, ImageMatch, Tally, match_image
from tests.report.conftest import box_rle


def random_ious(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoUs with many ties and values of just 0.5; descending scores, some of them on a step of the slider; crowds."""
    rng = np.random.default_rng(seed)
    detections, cells = rng.integers(0, 12), rng.integers(0, 8)
    ious = rng.integers(0, 11, (detections, cells)) / 10
    scores = np.sort(rng.choice([*SCORE_STEPS[::10], *rng.random(10)], detections))[::-1]
    return ious, scores, rng.random(cells) < 0.2


def brute_force(ious: np.ndarray, crowd: np.ndarray) -> tuple[int, int]:
    """Cells found and false detections, from the definition."""
    free = [cell for cell in range(len(crowd)) if not crowd[cell]]
    found = false = 0
    for row in ious:
        reached = [(row[cell], cell) for cell in free if row[cell] >= 0.5]
        if reached:
            free.remove(max(reached)[1])
            found += 1
        elif not any(row[cell] >= 0.5 for cell in range(len(crowd)) if crowd[cell]):
            false += 1
    return found, false


def image_of(monkeypatch: pytest.MonkeyPatch, ious: np.ndarray, scores: np.ndarray, crowd: np.ndarray) -> ImageMatch:
    monkeypatch.setattr(matching, "overlaps", lambda *_: ious)
    box, mask = np.zeros((1, 4)), box_rle(5, 5, 10, 10)
    columns = [(box.repeat(count, 0), [mask] * count) for count in ious.shape]
    truth = TrueCells(*columns[1], np.full(len(crowd), 7.0), np.zeros(len(crowd), int), crowd)
    return match_image({}, truth, Detections(*columns[0], scores, np.zeros(len(scores), int)), True)


@pytest.mark.parametrize("seed", range(60))
def test_every_threshold_against_matching_anew(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ious, scores, crowd = random_ious(seed)
    image = image_of(monkeypatch, ious, scores, crowd)
    tally = Tally()
    tally.add(image)
    for level, threshold in enumerate(SCORE_STEPS):
        found, false = brute_force(ious[scores >= threshold], crowd)
        counts = image.counts(level)
        assert (counts.found, counts.missed, counts.false) == (found, (~crowd).sum() - found, false)
        assert (tally.found[level], tally.false[level]) == (found, false)


@pytest.mark.parametrize(("use_cats", "expected"), [(True, FALSE), (False, HIT)])
def test_categories(use_cats: bool, expected: int) -> None:
    box, mask = np.array([[5.0, 5, 10, 10]]), [box_rle(5, 5, 10, 10)]
    truth = TrueCells(box, mask, np.array([100.0]), np.array([0]), np.array([False]))
    detections = Detections(box, mask, np.array([0.9]), np.array([1]))
    assert match_image({}, truth, detections, use_cats).outcomes.tolist() == [expected]


def test_unsorted_detections() -> None:
    box, mask = np.array([[5.0, 5, 10, 10]]), box_rle(5, 5, 10, 10)
    truth = TrueCells(box, [mask], np.array([100.0]), np.array([0]), np.array([False]))
    detections = Detections(box.repeat(2, 0), [mask, mask], np.array([0.2, 0.9]), np.array([0, 0]))
    image = match_image({}, truth, detections, True)
    assert image.levels.tolist() == [90, 20]
    assert image.outcomes.tolist() == [HIT, FALSE]
    assert image.found_levels.tolist() == [90]
