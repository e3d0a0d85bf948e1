"""Border targets on masks made by hand and against a loop over pixels; instances from probabilities made by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.watershed import BACKGROUND, BORDER, CELL, Thresholds, segment, to_instances, to_labels, to_target

SIGNS = {".": BACKGROUND, "o": CELL, "#": BORDER}


def drawn(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[SIGNS.get(sign, 0) for sign in row] for row in rows])


def square(size: int, first: int, last: int) -> torch.Tensor:
    labels = torch.zeros(size, size, dtype=torch.long)
    labels[first : last + 1, first : last + 1] = 1
    return labels


@pytest.mark.parametrize(
    ("kind", "width", "rows"),
    [
        ("inner", 1, [".........", ".........", "..#####..", "..#ooo#..", "..#ooo#..", "..#ooo#..", "..#####.."]),
        ("inner", 2, [".........", ".........", "..#####..", "..#####..", "..##o##..", "..#####..", "..#####.."]),
        ("outer", 1, [".........", ".#######.", ".#ooooo#.", ".#ooooo#.", ".#ooooo#.", ".#ooooo#.", ".#ooooo#."]),
        ("outer", 2, ["#########", "#########", "##ooooo##", "##ooooo##", "##ooooo##", "##ooooo##", "##ooooo##"]),
        ("both", 1, [".........", ".#######.", ".#######.", ".##ooo##.", ".##ooo##.", ".##ooo##.", ".#######."]),
    ],
)
def test_widths_on_a_square(kind: str, width: int, rows: list[str]) -> None:
    rows = rows + [rows[1], rows[0]]
    assert torch.equal(to_target(square(9, 2, 6), kind, width), drawn(rows))


@pytest.mark.parametrize("kind", ["inner", "outer", "both"])
@pytest.mark.parametrize("width", [1, 2])
def test_cells_that_touch_are_apart(kind: str, width: int) -> None:
    labels = torch.zeros(12, 24, dtype=torch.long)
    labels[1:11, 1:12] = 1
    labels[1:11, 12:23] = 2
    target = to_target(labels, kind, width)
    assert target[5, 12 - width : 12 + width].tolist() == [BORDER] * 2 * width
    assert target[5, 11 - width] == target[5, 12 + width] == CELL
    # Beside the contact an outer border leaves cells whole.
    assert (target[5, 1] == CELL) == (kind == "outer")


def test_the_edge_of_the_image_is_no_border() -> None:
    assert (to_target(torch.ones(6, 6, dtype=torch.long), "both", 2) == CELL).all()


@pytest.mark.parametrize("kind", ["inner", "both"])
def test_cells_too_small_for_a_border_keep_their_innermost(kind: str) -> None:
    labels = torch.zeros(14, 9, dtype=torch.long)
    labels[2:5, 2:5], labels[8, 3] = 1, 2
    target = to_target(labels, kind, 3)
    assert (target[2:5, 2:5] == CELL).sum() == 1 and target[3, 3] == CELL
    assert target[8, 3] == CELL


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [1, 3])
def test_against_a_loop(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    # Blocks of 8 pixels, so that every cell has a core.
    labels = np.kron(random.integers(0, 4, (4, 4)) * np.arange(1, 17).reshape(4, 4), np.ones((8, 8), int))
    inner, outer = np.zeros_like(labels), np.zeros_like(labels)
    for y, x in np.ndindex(*labels.shape):
        seen = labels[max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]
        if labels[y, x]:
            inner[y, x] = BORDER if (seen != labels[y, x]).any() else CELL
            outer[y, x] = BORDER if ((seen != labels[y, x]) & (seen > 0)).any() else CELL
        else:
            outer[y, x] = BORDER if seen.any() else BACKGROUND
    both = np.where(inner == BORDER, BORDER, np.where(labels > 0, inner, outer))
    for kind, expected in (("inner", inner), ("outer", outer), ("both", both)):
        assert np.array_equal(to_target(torch.from_numpy(labels), kind, width).numpy(), expected), kind


def test_no_cells() -> None:
    for kind in ("inner", "outer", "both"):
        assert not to_target(torch.zeros(5, 7, dtype=torch.long), kind, 2).any()


def test_labels_of_masks() -> None:
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 1:4] = True
    masks[1, 1:3, 3:6] = True
    expected = torch.tensor([[0] * 6, [0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2], [0] * 6])
    assert torch.equal(to_labels(BitMasks(masks), 4, 6), expected)
    polygons = PolygonMasks([[np.array([1.0, 1, 4, 1, 4, 3, 1, 3])], [np.array([3.0, 1, 6, 1, 6, 3, 3, 3])]])
    assert torch.equal(to_labels(polygons, 4, 6), expected)
    assert torch.equal(to_labels(BitMasks(torch.zeros(0, 4, 6)), 4, 6), torch.zeros(4, 6, dtype=torch.long))
    assert torch.equal(to_labels(PolygonMasks([]), 4, 6), torch.zeros(4, 6, dtype=torch.long))


@pytest.mark.parametrize(("kind", "width", "key"), [("middle", 1, "BORDER 'middle'"), ("inner", 0, "BORDER_WIDTH 0")])
def test_bad_border(kind: str, width: int, key: str) -> None:
    with pytest.raises(ConfigError, match=f"MODEL.SEMANTIC_WATERSHED.{key}: expected"):
        to_target(torch.zeros(3, 3, dtype=torch.long), kind, width)


def certain(labels: np.ndarray, border: str, width: int = 2) -> np.ndarray:
    """What a perfect network says of a label image."""
    target = to_target(torch.from_numpy(labels), border, width).numpy()
    return np.eye(3, dtype=np.float32)[target].transpose(2, 0, 1)


def by_cell(probability: np.ndarray) -> np.ndarray:
    """3 x H x W of a map of p(cell); the rest is background."""
    cell = np.asarray(probability, np.float32)
    return np.stack([1 - cell, cell, np.zeros_like(cell)])


def ellipses(count: int, seed: int, size: int = 120) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.int64)
    for number in range(1, count + 1):
        y, x = random.uniform(10, size - 10, 2)
        a, b = random.uniform(6, 14, 2)
        inside = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        # Cells touch, but none is cut to pieces.
        if (labels[inside] > 0).mean() < 0.15:
            labels[inside & (labels == 0)] = number
    return labels


def best_ious(labels: np.ndarray, found: np.ndarray) -> list[float]:
    ious = []
    for number in np.unique(labels[labels > 0]):
        cell = labels == number
        ious.append(max((np.mean(cell[cell | (found == n)] & (found == n)[cell | (found == n)])) for n in np.unique(found)))
    return ious


def two_blocks() -> np.ndarray:
    """That touch along a side, and one apart."""
    labels = np.zeros((40, 60), np.int64)
    labels[5:25, 5:25], labels[5:25, 25:45], labels[28:39, 0:30] = 1, 2, 3
    return labels


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_perfect_map_gives_the_instances_back(width: int) -> None:
    labels = two_blocks()
    found, scores = segment(certain(labels, "inner", width), "inner", Thresholds())
    assert np.array_equal(found, labels) and scores.tolist() == [1.0, 1.0, 1.0]


def test_an_outer_border_is_background() -> None:
    labels = two_blocks()
    found, scores = segment(certain(labels, "outer"), "outer", Thresholds())
    expected = labels.copy()
    expected[5:25, 23:27] = 0
    assert np.array_equal(found, expected) and scores.tolist() == [1.0, 1.0, 1.0]


def test_half_of_a_border_on_both_sides_is_the_cell_s() -> None:
    labels = np.zeros((60, 60), np.int64)
    labels[5:25, 5:25], labels[5:25, 25:45], labels[32:52, 8:48] = 1, 2, 3
    found, _ = segment(certain(labels, "both"), "both", Thresholds())
    assert min(best_ious(labels, found)) > 0.95 and found.max() == 3


@pytest.mark.parametrize("border", ["inner", "both"])
@pytest.mark.parametrize("seed", range(3))
def test_touching_ellipses_come_apart(border: str, seed: int) -> None:
    labels = ellipses(60, seed)
    found, _ = segment(certain(labels, border, 1), border, Thresholds())
    assert np.mean(best_ious(labels, found)) > 0.9
    assert found.max() == len(np.unique(labels)) - 1


def row(*values: float) -> np.ndarray:
    """Three equal rows, so that neighbours above and below change nothing."""
    return by_cell(np.tile(values, (3, 1)))


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        # p ............ .1 .25 .35 .75 .9 .75 .35 .25 .1
        ({}, [0, 1, 1, 1, 1, 1, 1, 1, 0]),
        ({"background": 0.26}, [0, 0, 1, 1, 1, 1, 1, 0, 0]),
        ({"background": 0.4, "relief": 0.4}, [0, 0, 0, 1, 1, 1, 0, 0, 0]),
        ({"background": 0.05}, [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"seed": 0.95}, [0] * 9),
        ({"seed": 0.7}, [0, 1, 1, 1, 1, 1, 1, 1, 0]),
        ({"score": 0.55}, [0] * 9),
        ({"score": 0.51}, [0, 1, 1, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_each_threshold(thresholds: dict[str, float], expected: list[int]) -> None:
    probabilities = row(0.1, 0.25, 0.35, 0.75, 0.9, 0.75, 0.35, 0.25, 0.1)
    # The mean over the seven pixels is 0.514; over nine it is 0.422.
    found, scores = segment(probabilities, "inner", Thresholds(**{"score": 0.4, **thresholds}))
    if expected[1] == 1 and expected[0] == 0:
        assert scores[0] == pytest.approx(3.6 / 7)
    assert found[1].tolist() == expected


def test_low_ground_is_flooded_before_high_ground() -> None:
    """Above the relief threshold the cell has the pixels far from its seed, below it cell and background share them."""
    low = row(0.9, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.1)
    assert segment(low, "inner", Thresholds(score=0))[0][1].tolist() == [1] * 7 + [0]
    high = row(0.9, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.1)
    assert segment(high, "inner", Thresholds(score=0))[0][1].tolist() == [1] * 4 + [0] * 4


def test_the_score_is_the_mean_probability_and_the_unlikely_are_dropped() -> None:
    cell = np.zeros((10, 30))
    cell[2:8, 2:8] = 0.9
    cell[2:8, 12:18] = 0.5
    cell[4, 14] = 0.85
    cell[2:8, 22:28] = 0.7
    cell[4, 24] = 0.85
    found, scores = segment(by_cell(cell), "inner", Thresholds())
    assert found[5, 5] == 2 or found[5, 5] == 1
    assert np.unique(found).tolist() == [0, 1, 2] and not found[:, 12:18].any()
    assert scores[found[5, 5] - 1] == pytest.approx(0.9) and scores[found[5, 25] - 1] == pytest.approx(
        (35 * 0.7 + 0.85) / 36
    )


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_uniform_images(value: float) -> None:
    found, scores = segment(by_cell(np.full((7, 9), value)), "inner", Thresholds())
    assert (found == (value > 0.8)).all() and len(scores) == (value > 0.8)


def test_the_same_as_scikit_image_s_watershed_of_the_whole() -> None:
    from skimage.segmentation import watershed

    import cupre_d2.modeling.watershed as module

    calls: list[Any] = []

    def whole(relief: np.ndarray, markers: np.ndarray, mask: np.ndarray) -> np.ndarray:
        calls.append(mask.mean())
        return watershed(relief, markers)

    for seed in range(3):
        random = np.random.default_rng(seed)
        logits = 5 * certain(ellipses(60, seed), "inner") + random.normal(0, 0.7, (3, 120, 120))
        probabilities = torch.from_numpy(logits).softmax(0).float().numpy()
        found, _ = segment(probabilities, "inner", Thresholds())
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "watershed", whole)
            expected, _ = segment(probabilities, "inner", Thresholds())
        # Only which of two cells has a pixel that both reach at the same time may differ.
        differ = found != expected
        assert differ.mean() < 0.01 and (found[differ] > 0).all() and (expected[differ] > 0).all()
        assert found.max() == expected.max()
    assert len(calls) == 3 and max(calls) < 1


def test_instances_of_a_label_image() -> None:
    labels = np.zeros((6, 8), np.int32)
    labels[1:3, 2:7], labels[3:6, 0] = 2, 1
    instances = to_instances(labels, np.array([0.7, 0.9], np.float32))
    assert instances.image_size == (6, 8)
    assert instances.pred_masks.dtype == torch.bool
    assert np.array_equal(instances.pred_masks.numpy(), labels == np.array([1, 2])[:, None, None])
    assert instances.pred_boxes.tensor.tolist() == [[0, 3, 1, 6], [2, 1, 7, 3]]
    assert instances.scores.tolist() == pytest.approx([0.7, 0.9]) and instances.pred_classes.tolist() == [0, 0]


def test_instances_of_nothing() -> None:
    instances = to_instances(np.zeros((6, 8), np.int32), np.zeros(0, np.float32))
    assert len(instances) == 0 and instances.pred_masks.shape == (0, 6, 8)
    assert instances.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("name", ["seed", "background", "relief", "score"])
def test_thresholds_out_of_range(name: str) -> None:
    with pytest.raises(ConfigError, match=f"MODEL.SEMANTIC_WATERSHED.{name.upper()}_THRESHOLD 1.5: expected"):
        Thresholds(**{name: 1.5})


def test_thresholds_out_of_order() -> None:
    with pytest.raises(ConfigError, match="BACKGROUND_THRESHOLD 0.5: expected at most .*RELIEF_THRESHOLD, 0.3"):
        Thresholds(background=0.5)
