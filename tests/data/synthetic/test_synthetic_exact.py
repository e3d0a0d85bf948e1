import numpy as np
import pytest

from cupre_d2.data.synthetic.exact import Dice, blur, blur_far, clouds, ramp, uneven


def test_normal() -> None:
    dice = Dice(4, 2)
    drawn = np.array([dice.normal(2.0) for _ in range(4000)])
    assert abs(drawn.mean()) < 0.12 and abs(drawn.std() - 2) < 0.1
    assert 0.66 < (np.abs(drawn) < 2).mean() < 0.71 and 0.94 < (np.abs(drawn) < 4).mean() < 0.965


def test_direction() -> None:
    dice = Dice(4, 3)
    drawn = np.array([dice.direction() for _ in range(4000)])
    assert np.allclose((drawn**2).sum(axis=1), 1)
    angles = np.arctan2(drawn[:, 1], drawn[:, 0])
    assert np.histogram(angles, 8, (-np.pi, np.pi))[0].min() > 400


def test_noise() -> None:
    noise = Dice(4, 4).noise(200, 200)
    assert noise.dtype == np.float32 and abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02


def test_whole_numbers() -> None:
    dice = Dice(1)
    assert {dice.integer(3, 5) for _ in range(60)} == set(dice.integers(3, 5, 60)) == {3, 4, 5}


def gaussian(sigma: float, size: int) -> np.ndarray:
    offsets = np.arange(size) - size // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    return np.outer(weights, weights) / weights.sum() ** 2


@pytest.mark.parametrize("sigma", [0.5, 1.3, 2.0])
def test_blur_is_a_gaussian_s(sigma: float) -> None:
    point = np.zeros((33, 33), np.float32)
    point[16, 16] = 10
    assert np.abs(blur(point, sigma) - 10 * gaussian(sigma, 33)).max() < 0.01


@pytest.mark.parametrize("size", [126, 127, 128, 129])
def test_far_blur_is_about_a_gaussian_s(size: int) -> None:
    block = np.zeros((size, size), np.float32)
    block[56:72, 56:72] = 4
    expected = np.zeros((size, size))
    kernel = gaussian(12, 97)
    for row in range(56, 72):
        for column in range(56, 72):
            window = slice(max(row - 48, 0), row + 49), slice(max(column - 48, 0), column + 49)
            part = kernel[window[0].start - row + 48 :, window[1].start - column + 48 :]
            target = expected[window]
            target += 4 * part[: target.shape[0], : target.shape[1]]
    assert np.abs(blur_far(block, 12) - expected).max() < 0.1 * expected.max()


def test_surfaces() -> None:
    dice = Dice(9)
    for surface, low, high in (
        (ramp(dice, 40, 30), 0, 1),
        (clouds(dice, 6, 64), -1, 1),
        (uneven(dice, 64), -2.5, 2.5),
    ):
        assert surface.dtype == np.float32 and low <= surface.min() < surface.max() <= high
    slope = ramp(dice, 40, 30)
    assert (slope.min(), slope.max()) == (0, 1)
    assert np.abs(np.diff(np.diff(slope, axis=0), axis=0)).max() < 1e-6
