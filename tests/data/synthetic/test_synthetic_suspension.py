from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cupre_d2.data import synthetic
from cupre_d2.data.synthetic import BRIGHT_FIELD, PHASE_CONTRAST, Suspension
from cupre_d2.data.synthetic.exact import Dice
from cupre_d2.data.synthetic.suspension import _count

KINDS = [(synthetic.draw_bright_field, BRIGHT_FIELD), (synthetic.draw_phase_contrast, PHASE_CONTRAST)]
CLEAN = {"blur": (0.0, 0.0), "noise": (0.0, 0.0), "unevenness": 0.0}


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize(("draw", "parameters"), KINDS)
def test_numbers_sizes_and_margins(draw: Callable, parameters: Suspension, size: int) -> None:
    """In proportion to the image; deformed cells are up to two pixels larger."""
    scale = size // 128
    reach = (parameters.radius[1] + 2) * scale
    left, right, top, bottom = (margin * scale for margin in parameters.margins)
    radii = []
    for index in range(30):
        _, masks, _ = draw(3, index, size)
        assert 1 <= len(masks) <= 30
        for mask in masks:
            rows, columns = np.nonzero(mask)
            assert left - reach <= columns.min() and columns.max() <= size - right + reach
            assert top - reach <= rows.min() and rows.max() <= size - bottom + reach
            assert ndimage.label(mask)[1] == 1
            radii.append(np.sqrt(mask.sum() / np.pi) / scale)
    assert parameters.radius[0] - 1 < min(radii) and max(radii) < parameters.radius[1] + 2
    assert abs(np.mean(radii) - np.mean(parameters.radius) - 0.5) < 0.8


def test_published_counts() -> None:
    """(36 - c) / 615 for c from 1 to 30, of mean 11.85."""
    dice = Dice(1)
    drawn = np.array([_count(dice, 30) for _ in range(20_000)])
    expected = (36 - np.arange(1, 31)) / 615
    assert set(drawn) == set(range(1, 31)) and abs(drawn.mean() - 11.85) < 0.2
    shares = np.bincount(drawn, minlength=31)[1:] / len(drawn)
    assert np.abs(shares - expected).max() < 4 * np.sqrt(expected.max() / len(drawn))


@pytest.mark.parametrize(("draw", "parameters"), KINDS)
def test_almost_all_find_a_place(draw: Callable, parameters: Suspension) -> None:
    counts = [len(draw(8, index)[1]) for index in range(100)]
    assert 9.5 < np.mean(counts) < 14.2


@pytest.mark.parametrize(("draw", "parameters"), KINDS)
def test_rim_inside_and_ground(draw: Callable, parameters: Suspension) -> None:
    """The outermost pixels of a mask are rim, those within are inside, all else is ground."""
    rims = range(parameters.rim, parameters.rim + parameters.rim_spread + 1)
    insides = range(parameters.inner, parameters.inner + parameters.inner_spread + 1)
    apart = replace(parameters, overlap=-4, **CLEAN)
    for index in range(10):
        image, masks, _ = draw(5, index, 128, apart)
        grey = image[:, :, 0]
        assert (grey[~masks.any(axis=0)] == parameters.ground).all()
        for mask in masks:
            outermost = mask & ~ndimage.binary_erosion(mask)
            (rim,) = set(grey[outermost])
            assert rim in rims
            inner = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=2)
            assert {int(value) for value in grey[inner]} <= set(insides) and len(set(grey[inner])) <= 1


def test_bright_field_is_dark_rimmed_and_phase_contrast_bright_rimmed() -> None:
    for (draw, _), sign in zip(KINDS, (-1, 1), strict=True):
        contrasts = []
        for index in range(10):
            image, masks, _ = draw(6, index)
            grey = image[:, :, 0].astype(float)
            ground = grey[~ndimage.binary_dilation(masks.any(axis=0), iterations=3)].mean()
            contrasts += [sign * (grey[mask & ~ndimage.binary_erosion(mask)].mean() - ground) for mask in masks]
        assert min(contrasts) > 10


def test_means_are_those_of_the_natural_images() -> None:
    for (draw, _), (mean, deviation) in zip(KINDS, ((0.744, 0.033), (0.24, 0.042)), strict=True):
        values = np.stack([draw(2, index)[0] for index in range(20)]) / 255
        assert abs(values.mean() - mean) < deviation and 0.4 < values.std() / deviation < 2


def test_overlap() -> None:
    gap = replace(PHASE_CONTRAST, overlap=-6)
    deep = replace(PHASE_CONTRAST, overlap=5)
    depths = [
        np.mean([(draw_masks.sum(axis=0) > 1).sum() for _, draw_masks, _ in drawn])
        for drawn in (
            [synthetic.draw_phase_contrast(1, index, 128, parameters) for index in range(20)]
            for parameters in (gap, PHASE_CONTRAST, deep)
        )
    ]
    assert depths[0] == 0 < depths[1] and 3 * depths[1] < depths[2]


def test_blur_and_noise() -> None:
    def drawn(**changes: object) -> np.ndarray:
        return synthetic.draw("bright_field", 4, 2, 128, **{**CLEAN, **changes})[0][:, :, 0].astype(float)

    clean = drawn()
    gradients = [np.abs(np.diff(drawn(blur=(sigma, sigma)), axis=1)).max() for sigma in (0.5, 1.0, 2.0)]
    assert np.abs(np.diff(clean, axis=1)).max() > gradients[0] > gradients[1] > gradients[2]
    for deviation in (1.0, 4.0):
        assert abs((drawn(noise=(deviation, deviation)) - clean).std() - deviation) < 0.1 * deviation + 0.1
    assert np.ptp(drawn(unevenness=0.1)[:8, :8]) < np.ptp(drawn(unevenness=0.1)[0]) > 5


def test_no_room_ends_with_fewer() -> None:
    crowded = replace(PHASE_CONTRAST, radius=(20, 20), largest_count=30)
    counts = [len(synthetic.draw_phase_contrast(2, index, 128, crowded)[1]) for index in range(5)]
    assert min(counts) >= 1 and max(counts) < 15
