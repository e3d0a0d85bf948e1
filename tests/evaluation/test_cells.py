import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_util

from cupre_d2.evaluation.cells import InvalidMask, areas_of, encode_mask, paint, pixels, to_rles, with_text


def encode(mask: np.ndarray) -> dict:
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)))
@settings(max_examples=300, deadline=None)
def test_encodes_as_pycocotools(mask: np.ndarray) -> None:
    assert encode_mask(mask) == encode(mask)


@pytest.mark.parametrize("filled", [np.s_[:, :], np.s_[:0], np.s_[:, 3:9], np.s_[4, 5], np.s_[39, 59], np.s_[:, ::2]])
def test_encodes_masks_at_every_border(filled: tuple) -> None:
    mask = np.zeros((40, 60), bool)
    mask[filled] = True
    assert encode_mask(mask) == encode(mask)
    in_columns = np.asfortranarray(mask)
    assert encode_mask(in_columns) == encode(mask)
    assert encode_mask(np.broadcast_to(mask, (2, 40, 60))[1]) == encode(mask)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 255, 256, 700])
def test_areas_of_any_number_of_masks(count: int) -> None:
    masks = [np.arange(30).reshape(5, 6) < area % 30 for area in range(count)]
    areas = areas_of([encode(mask) for mask in masks])
    assert areas.dtype == np.float64 and areas.tolist() == [mask.sum() for mask in masks]


def test_polygons_of_one_cell_are_merged() -> None:
    alone = [[8, 0, 10, 0, 10, 3, 8, 3]]
    first, rle, last = to_rles([alone, [[0, 0, 4, 0, 4, 4, 0, 4], np.array([2.0, 2, 6, 2, 6, 6, 2, 6])], alone], 10, 12)
    expected = np.zeros((10, 12), bool)
    expected[:4, :4] = expected[2:6, 2:6] = True
    assert (mask_util.decode(rle) == expected).all()
    assert mask_util.decode(to_rles([with_text(rle)], 10, 12)).sum() == 28
    assert first == last == mask_util.frPyObjects(alone, 10, 12)[0]


@pytest.mark.parametrize("broken", [[[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [["a"] * 6], [[[1, 2], [3, 4], [5, 6]]], [7]])
def test_what_is_no_polygon_is_named_by_its_place(broken: list) -> None:
    """pycocotools takes four numbers for a box, if they come first."""
    with pytest.raises(InvalidMask, match="is no list of polygons") as caught:
        to_rles([[[0, 0, 4, 0, 4, 4]], broken], 10, 12)
    assert caught.value.index == 1


def test_the_highest_score_is_on_top() -> None:
    first, second, third = (np.zeros((5, 7), bool) for _ in range(3))
    first[:, :4], second[1:3, 2:6], third[4] = True, True, True
    rles = [encode(mask) for mask in (first, second, third)]
    expected = first * 1
    expected[1:3, 2:6], expected[4] = 2, 3
    assert (paint(rles, [0.1, 0.9, 0.5], 5, 7) == expected).all()
    assert (paint(rles, [0.5, 0.5, 0.5], 5, 7) == np.where(first, 1, np.where(second, 2, 3 * third))).all()
    assert set(paint([encode(first), encode(first)], [0.2, 0.3], 5, 7).ravel()) == {0, 2}
    assert paint([], [], 5, 7).tolist() == [[0] * 7] * 5


def test_pixels_are_counted_down_the_columns() -> None:
    mask = np.zeros((5, 7), bool)
    mask[3, 0] = mask[1, 2] = True
    assert pixels(encode(mask)).tolist() == [3, 11]
