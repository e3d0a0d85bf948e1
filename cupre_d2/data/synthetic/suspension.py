"""Suspension cells in bright field and phase contrast, as the Twin-VAE papers draw theirs (facts/twin_vae.md §1.6)."""

from dataclasses import dataclass

import cv2
import numpy as np

from cupre_d2.data.synthetic.exact import Dice, uneven
from cupre_d2.data.synthetic.fluorescence import Drawing

_TRIES = 100
# Side of the papers' images; radii and margins of another size are in proportion.
_PAPER_SIZE = 128


@dataclass(frozen=True)
class Suspension:
    """What can be set. Grey values of 255 and pixels of a 128-px image, as published code has them unless said.

    Attributes:
        inner, rim: lowest grey value of a cell's inside and of its rim. inner_spread, rim_spread: most that is added,
            cell by cell.
        radius: smallest and largest.
        margins: left, right, top, bottom; centres stay within.
        overlap: by how many pixels two circles may overlap.
        largest_count: c cells, from 1 to this, have a probability that falls by equal steps with c, as published.
        blur: standard deviation of the blur; half the picture is blurred, half is not.
        ground: grey value of the medium; published code lays cells on the mean of the natural images, of which we know
            that their mean is 0.744 (bright field) and 0.24 (phase contrast). unevenness: relative, our choice.
        noise: standard deviation, grey values. The papers speak of noise, their code draws none; our choice.
    """

    inner: int
    inner_spread: int
    rim: int
    ground: int
    radius: tuple[int, int]
    margins: tuple[int, int, int, int]
    overlap: int
    rim_spread: int = 49
    largest_count: int = 30
    blur: float = 1.0
    unevenness: float = 0.05
    noise: float = 2.0


BRIGHT_FIELD = Suspension(inner=180, inner_spread=29, rim=80, ground=190, radius=(3, 7), margins=(26, 20, 12, 6), overlap=0)
PHASE_CONTRAST = Suspension(inner=50, inner_spread=9, rim=160, ground=61, radius=(3, 9), margins=(12, 11, 11, 10), overlap=1)


def draw_bright_field(seed: int, index: int, size: int = 128, parameters: Suspension = BRIGHT_FIELD) -> Drawing:
    """Cells with a dark rim on a bright ground; see `draw_suspension`."""
    return draw_suspension(Dice(seed, index, 3), size, parameters)


def draw_phase_contrast(seed: int, index: int, size: int = 128, parameters: Suspension = PHASE_CONTRAST) -> Drawing:
    """Dark cells with a bright rim on a dark ground; see `draw_suspension`."""
    return draw_suspension(Dice(seed, index, 4), size, parameters)


def draw_suspension(dice: Dice, size: int, parameters: Suspension) -> Drawing:
    """A rim ellipse and an inner ellipse a cell, half blurred, on a medium.

    Published code tries for ever to place a cell where none has room; here it is a hundred times, and then the cells that
    have a place are all there are: their number is that of the masks. Blurring is of colour times opacity; that of colour
    alone, as published, darkens the rim by the black of what is transparent.

    Args:
        dice: random numbers of this image.
        size: side, pixels, at least 64.
        parameters: see `Suspension`.

    Returns:
        size x size x 3 uint8 image of equal channels; N x size x size bool masks, rim included; class indices, all 0.
    """
    scale = size / _PAPER_SIZE
    colour, opacity = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    places = _place(dice, _count(dice, parameters.largest_count), size, scale, parameters)
    masks = np.zeros((len(places), size, size), bool)
    for mask, (row, column, radius) in zip(masks, places, strict=True):
        box = _deformed(dice, row, column, radius)
        window = slice(max(box[0], 0), box[2] + 1), slice(max(box[1], 0), box[3] + 1)
        whole = _ellipse(box, window, size)
        inside = _ellipse((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), window, size)
        mask[window] = whole
        opacity[window][whole] = 255
        colour[window][whole] = min(255, parameters.rim + dice.integer(0, parameters.rim_spread))
        colour[window][inside] = min(255, parameters.inner + dice.integer(0, parameters.inner_spread))
    ground = np.float32(parameters.ground) * (1 + np.float32(parameters.unevenness) * uneven(dice, size))
    picture = _half_blurred(colour, parameters.blur) + ground * (
        1 - _half_blurred(opacity, parameters.blur) / np.float32(255)
    )
    noise = np.float32(parameters.noise) * dice.noise(size, size)
    grey = np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), masks, [0] * len(places)


def _count(dice: Dice, largest: int) -> int:
    """1 to `largest`, c with weight largest + 6 - c."""
    weights = np.arange(largest + 5, 5, -1)
    return int(np.searchsorted(np.cumsum(weights), dice.integer(1, int(weights.sum()))) + 1)


def _place(dice: Dice, wanted: int, size: int, scale: float, parameters: Suspension) -> list[tuple[int, int, int]]:
    """Row, column and radius of circles that keep their distance; centres lie on every other pixel."""
    left, right, top, bottom = (round(margin * scale) for margin in parameters.margins)
    places: list[tuple[int, int, int]] = []
    for _ in range(wanted):
        for _ in range(_TRIES):
            radius = round(dice.integer(*parameters.radius) * scale)
            row = top + 2 * dice.integer(0, (size - bottom - top) // 2 - 1)
            column = left + 2 * dice.integer(0, (size - right - left) // 2 - 1)
            if all(_are_apart((row, column, radius), other, parameters.overlap) for other in places):
                places.append((row, column, radius))
                break
    return places


def _are_apart(one: tuple[int, int, int], other: tuple[int, int, int], overlap: int) -> bool:
    distance = max(one[2] + other[2] - overlap, 0)
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 >= distance**2


def _deformed(dice: Dice, row: int, column: int, radius: int) -> tuple[int, int, int, int]:
    """The circle's box, top, left, bottom, right, its top and left moved by -2 to 1 pixels; half of it if it is small."""
    up, aside = (dice.integer(-2, 1) for _ in range(2))
    if radius <= 3:
        up, aside = int(up / 2), int(aside / 2)
    return row - radius + up, column - radius + aside, row + radius, column + radius


def _ellipse(box: tuple[int, int, int, int], window: tuple[slice, slice], size: int) -> np.ndarray:
    """Pixels of a window whose middle lies in the ellipse of a box, last row and column included; in whole numbers."""
    top, left, bottom, right = box
    height, width = bottom - top + 1, right - left + 1
    rows = 2 * np.arange(size)[window[0], None] - (top + bottom)
    columns = 2 * np.arange(size)[None, window[1]] - (left + right)
    return rows * rows * (width * width) + columns * columns * (height * height) <= height * height * width * width


def _half_blurred(layer: np.ndarray, sigma: float) -> np.ndarray:
    """Float32; OpenCV's blur of 8 bits is the same on every machine."""
    if sigma <= 0:
        return layer.astype(np.float32)
    width = 2 * int(3 * sigma + 0.5) + 1
    return (layer.astype(np.float32) + cv2.GaussianBlur(layer, (width, width), sigma)) / 2
