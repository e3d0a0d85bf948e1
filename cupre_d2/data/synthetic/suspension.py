"""Suspension cells in bright field and phase contrast, as the Twin-VAE paper draws its own (facts/twin_vae.md §1.6)."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from cupre_d2.data.synthetic.exact import Dice, uneven
from cupre_d2.data.synthetic.fluorescence import Drawing

_TRIES = 100
# Side of the paper's images.
_PAPER_SIZE = 128


@dataclass(frozen=True)
class Suspension:
    """What can be set, as published code has it unless said; pairs are a range from which each image, or cell, draws.

    Grey values are of 255. Lengths are pixels of an image of 128; in one of another size they are in proportion.

    Attributes:
        inner, rim: lowest grey value of a cell's inside and of its rim. inner_spread, rim_spread: most that is added,
            cell by cell.
        ground: grey value of the medium. Published code lays cells on the mean of the natural images, which we have not;
            its mean is 0.744 in bright field, 0.24 in phase contrast.
        radius: of a cell. deform: by how much its left and its upper end are moved; half of it up to a radius of 3.
        rim_width: at least a pixel of the image.
        margins: left, right, top, bottom; centres stay within.
        overlap: by how much two circles may overlap; negative for a gap.
        largest_count: c cells, from 1 to this, have a probability that falls by equal steps with c.
        blur: standard deviation. The paper speaks of random strengths, its code has 1: here they are about 1.
        blurred: share of the blurred picture in the whole, the rest is sharp.
        noise: standard deviation, grey values. The paper speaks of it, its code draws none: our choice.
        unevenness: of the medium, relative; our choice.
    """

    inner: int
    inner_spread: int
    rim: int
    ground: int
    radius: tuple[int, int]
    margins: tuple[int, int, int, int]
    overlap: int
    rim_spread: int = 49
    deform: tuple[int, int] = (-2, 1)
    rim_width: float = 1.0
    largest_count: int = 30
    blur: tuple[float, float] = (0.6, 1.4)
    blurred: float = 0.5
    noise: tuple[float, float] = (1.0, 3.0)
    unevenness: float = 0.05

    def __post_init__(self) -> None:
        left, right, top, bottom = self.margins
        if max(left + right, top + bottom) > _PAPER_SIZE - 8:
            raise ValueError(f"margins {self.margins} leave less than 8 of {_PAPER_SIZE} pixels")
        if self.radius[0] < 2 or self.largest_count < 1:
            raise ValueError(f"radius {self.radius} and largest_count {self.largest_count}; expected at least 2 and 1")

        if self.blurred > 1:
            raise ValueError(f"blurred is {self.blurred}; expected at most 1")


BRIGHT_FIELD = Suspension(inner=180, inner_spread=29, rim=80, ground=190, radius=(3, 7), margins=(26, 20, 12, 6), overlap=0)
PHASE_CONTRAST = Suspension(inner=50, inner_spread=9, rim=160, ground=61, radius=(3, 9), margins=(12, 11, 11, 10), overlap=1)


class _Cell(NamedTuple):
    """Middle and radius of its circle, and where its upper and left end are moved, pixels of the image."""

    row: int
    column: int
    radius: int
    up: int
    aside: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right, the latter two included."""
        top, left = self.row - self.radius + self.up, self.column - self.radius + self.aside
        return top, left, self.row + self.radius, self.column + self.radius


def draw_bright_field(seed: int, index: int, size: int = 128, parameters: Suspension = BRIGHT_FIELD) -> Drawing:
    """Bright cells with a dark rim on a bright ground; see `draw_suspension`."""
    return draw_suspension(Dice(seed, index, 3), size, parameters)


def draw_phase_contrast(seed: int, index: int, size: int = 128, parameters: Suspension = PHASE_CONTRAST) -> Drawing:
    """Dark cells with a bright rim on a dark ground; see `draw_suspension`."""
    return draw_suspension(Dice(seed, index, 4), size, parameters)


def draw_suspension(dice: Dice, size: int, parameters: Suspension) -> Drawing:
    """A rim ellipse and an inner ellipse a cell, partly blurred, on a medium.

    Published code tries for ever to place a cell where none has room; here it is a hundred times, and then the cells that
    have a place are all there are: their number is that of the masks. Blurring is of colour times opacity; that of colour
    alone, as published, darkens the rim by the black of what is transparent.

    Args:
        dice: random numbers of this image.
        size: side, pixels, at least 64.
        parameters: see `Suspension`.

    Returns:
        size x size x 3 uint8 image of equal channels; N x size x size bool masks, rim included, that both have the pixels
        where two cells overlap; class indices, all 0.
    """
    scale = size / _PAPER_SIZE
    rim_width = max(1, round(parameters.rim_width * scale))
    colour, opacity = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    cells = _place(dice, _count(dice, parameters.largest_count), size, scale, parameters)
    masks = np.zeros((len(cells), size, size), bool)
    for mask, cell in zip(masks, cells, strict=True):
        box = cell.box
        window = slice(max(box[0], 0), box[2] + 1), slice(max(box[1], 0), box[3] + 1)
        whole = _ellipse(box, 0, window, size)
        inside = _ellipse(box, rim_width, window, size)
        mask[window] = whole
        opacity[window][whole] = 255
        colour[window][whole] = min(255, parameters.rim + dice.integer(0, parameters.rim_spread))
        colour[window][inside] = min(255, parameters.inner + dice.integer(0, parameters.inner_spread))
    grey = _compose(dice, colour, opacity, scale, parameters)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), masks, [0] * len(cells)


def _count(dice: Dice, largest: int) -> int:
    """1 to `largest`, c with weight largest + 6 - c."""
    weights = np.arange(largest + 5, 5, -1)
    return int(np.searchsorted(np.cumsum(weights), dice.integer(1, int(weights.sum()))) + 1)


def _place(dice: Dice, wanted: int, size: int, scale: float, parameters: Suspension) -> list[_Cell]:
    """Circles that keep their distance, and how they are deformed; centres lie on every other pixel."""
    left, right, top, bottom = (round(margin * scale) for margin in parameters.margins)
    overlap = round(parameters.overlap * scale)
    cells: list[_Cell] = []
    for _ in range(wanted):
        for _ in range(_TRIES):
            radius = dice.integer(*parameters.radius)
            row = top + 2 * dice.integer(0, (size - bottom - top) // 2 - 1)
            column = left + 2 * dice.integer(0, (size - right - left) // 2 - 1)
            if all(_are_apart(row, column, round(radius * scale), other, overlap) for other in cells):
                moved = dice.integers(*parameters.deform, 2)
                up, aside = (round((int(step / 2) if radius <= 3 else step) * scale) for step in moved)
                cells.append(_Cell(row, column, round(radius * scale), up, aside))
                break
    return cells


def _are_apart(row: int, column: int, radius: int, other: _Cell, overlap: int) -> bool:
    distance = max(radius + other.radius - overlap, 0)
    rows, columns = row - other.row, column - other.column
    return rows * rows + columns * columns >= distance * distance


def _ellipse(box: tuple[int, int, int, int], inset: int, window: tuple[slice, slice], size: int) -> np.ndarray:
    """Pixels of a window whose middle lies in the ellipse of a box, last row and column included; in whole numbers."""
    top, left, bottom, right = box
    height, width = max(bottom - top + 1 - 2 * inset, 0), max(right - left + 1 - 2 * inset, 0)
    rows = 2 * np.arange(size, dtype=np.int64)[window[0], None] - (top + bottom)
    columns = 2 * np.arange(size, dtype=np.int64)[None, window[1]] - (left + right)
    return rows * rows * (width * width) + columns * columns * (height * height) < height * height * width * width


def _compose(dice: Dice, colour: np.ndarray, opacity: np.ndarray, scale: float, parameters: Suspension) -> np.ndarray:
    """The layer of cells on the medium, and noise. H x W uint8."""
    size = len(colour)
    sigma = dice.uniform(*parameters.blur) * scale
    layer = _partly_blurred(colour, sigma, parameters.blurred)
    cover = _partly_blurred(opacity, sigma, parameters.blurred) / np.float32(255)
    ground = np.float32(parameters.ground) * (1 + np.float32(parameters.unevenness) * uneven(dice, size))
    noise = np.float32(dice.uniform(*parameters.noise)) * dice.noise(size, size)
    return np.clip(np.rint(layer + ground * (1 - cover) + noise), 0, 255).astype(np.uint8)


def _partly_blurred(layer: np.ndarray, sigma: float, share: float) -> np.ndarray:
    """Float32; OpenCV's blur of 8 bits is the same on every machine."""
    if sigma <= 0:
        return layer.astype(np.float32)
    width = 2 * int(3 * sigma + 0.5) + 1
    blurred = cv2.GaussianBlur(layer, (width, width), sigma)
    return layer * np.float32(1 - share) + blurred * np.float32(share)
