"""Border targets on masks made by hand, and against a loop over pixels."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.borders import BACKGROUND, BORDER, CELL, to_labels, to_target

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
