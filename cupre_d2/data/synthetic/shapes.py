"""Coloured shapes that occlude each other: the quickstart's stand-in for COCO."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from cupre_d2.data.synthetic.exact import Dice, clouds, ramp
from cupre_d2.data.synthetic.fluorescence import SMALLEST, Drawing

SHAPES = ("disc", "ellipse", "rectangle", "triangle", "star", "ring")
# Corners of a regular polygon, and cosine and sine of the angle from one to the next.
_STEPS = {
    64: (0.9951847266721969, 0.0980171403295606),
    10: (0.8090169943749475, 0.5877852522924731),
    4: (0.0, 1.0),
    3: (-0.5, 0.8660254037844386),
}
_HALF_ROOT = 0.7071067811865476


@dataclass(frozen=True)
class Scene:
    """What can be set; pairs are a range from which each image draws, the radius each shape.

    Attributes:
        shapes: how many are laid; later ones may hide earlier ones.
        radius: of the circle about a shape, about, as a share of the image's side.
        stripes: share of images whose ground has stripes.
        noise: standard deviation, grey values.
    """

    shapes: tuple[int, int] = (2, 8)
    radius: tuple[float, float] = (0.09, 0.22)
    stripes: float = 0.5
    noise: tuple[float, float] = (1.0, 6.0)

    def __post_init__(self) -> None:
        if self.shapes[0] < 1:
            raise ValueError(f"shapes {self.shapes}; expected at least 1")


DEFAULT = Scene()


def draw_shapes(seed: int, index: int, size: int = 192, parameters: Scene = DEFAULT) -> Drawing:
    """Two to eight coloured, shaded shapes that occlude each other, on a coloured, textured ground.

    Args:
        seed, index: from 0; the same pair gives the same bytes.
        size: side, pixels, at least 64; shapes grow with it.
        parameters: see `Scene`.

    Returns:
        size x size x 3 uint8 image; the visible part of each shape, if at least 40 pixels, as N x size x size bool
        masks that do not overlap; their indices in SHAPES.
    """
    dice = Dice(seed, index, 2)
    # 3 x H x W: NumPy is slow along short last axes.
    canvas = _ground(dice, size, parameters.stripes)
    # In whole numbers, whose sum does not depend on their order.
    ground_color = np.rint(canvas).astype(np.int32).sum((1, 2), np.int64) / (size * size)
    owner = np.full((size, size), -1, np.int16)
    kinds = dice.integers(0, len(SHAPES) - 1, dice.integer(*parameters.shapes))
    for number, kind in enumerate(kinds):
        mask = np.zeros((size, size), np.uint8)
        # OpenCV takes sixteenths of a pixel; what lies in two outlines is a hole.
        outlines = [
            np.round(outline * 16).astype(np.int32) for outline in _outlines(dice, SHAPES[kind], size, parameters.radius)
        ]
        cv2.fillPoly(mask, outlines, (1,), shift=4)
        _paint(dice, canvas, mask, _color_unlike(dice, ground_color))
        owner[mask > 0] = number
    canvas += np.float32(dice.uniform(*parameters.noise)) * dice.noise(*canvas.shape)
    masks = owner == np.arange(len(kinds), dtype=np.int16)[:, None, None]
    visible = np.bincount(owner.ravel() + 1, minlength=len(kinds) + 1)[1:] >= SMALLEST
    return (
        cv2.merge(list(np.clip(canvas, 0, 255).astype(np.uint8))),
        masks[visible],
        [kind for kind, seen in zip(kinds, visible, strict=True) if seen],
    )


def _ground(dice: Dice, size: int, stripes: float) -> np.ndarray:
    """A gradient between two colours, clouds and, often, stripes. 3 x H x W float32."""
    share = ramp(dice, size, size)
    first, second = (dice.uniforms(30, 225, 3).astype(np.float32)[:, None, None] for _ in range(2))
    canvas = first * (1 - share) + second * share
    cells = dice.integer(4, 19)
    for channel in canvas:
        channel += np.float32(26) * clouds(dice, cells, size)
    if dice.uniform() < stripes:
        canvas += np.float32(dice.uniform(5, 25)) * _waves(ramp(dice, size, size), dice.uniform(3, 12))
    return canvas


def _waves(share: np.ndarray, count: float) -> np.ndarray:
    """That many waves, -1 to 1, over a surface from 0 to 1; their crests are parabolas."""
    phase = share * np.float32(2 * count)
    half = np.floor(phase)
    rest = phase - half
    crest = 4 * rest * (1 - rest)
    return np.where(half % 2 == 0, crest, -crest)


def _outlines(dice: Dice, kind: str, size: int, radii: tuple[float, float]) -> list[np.ndarray]:
    """Outlines as N x 2 arrays of x, y in pixels; the second one, if any, is a hole."""
    cosine, sine = dice.direction()
    radius = dice.uniform(*radii) * size
    center = dice.uniforms(0.05, 0.95, 2) * size
    narrow = dice.uniform(0.4, 0.7)
    ratio = dice.uniform(0.5, 1.2)
    height = dice.uniform(0.8, 1.2)
    outlines = {
        "disc": [_corners(64)],
        "ellipse": [_corners(64) * [1.2, 1.2 * narrow]],
        # Stood on a side before one axis is shortened, which would make a rhomb of it otherwise.
        "rectangle": [_turned(_corners(4), _HALF_ROOT, _HALF_ROOT) * [1.2, ratio]],
        "triangle": [_corners(3) * [1.1, height]],
        "star": [_corners(10) * np.tile([1.2, 0.5], 5)[:, None]],
        "ring": [_corners(64), _corners(64) * narrow],
    }
    return [_turned(outline * radius, cosine, sine) + center for outline in outlines[kind]]


def _turned(points: np.ndarray, cosine: float, sine: float) -> np.ndarray:
    """Without a matrix product, whose rounding depends on the processor."""
    x, y = points[:, 0], points[:, 1]
    return np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)


@cache
def _corners(count: int) -> np.ndarray:
    """Of a regular polygon of radius 1, each turned from the one before."""
    cosine, sine = _STEPS[count]
    corners = [(1.0, 0.0)]
    for _ in range(count - 1):
        x, y = corners[-1]
        corners.append((x * cosine - y * sine, x * sine + y * cosine))
    return np.array(corners)


def _paint(dice: Dice, canvas: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Lays a shape on the canvas, brighter on one side, with an edge of a pixel."""
    x, y, width, height = cv2.boundingRect(mask)
    rows, columns = slice(max(y - 2, 0), y + height + 2), slice(max(x - 2, 0), x + width + 2)
    alpha = cv2.GaussianBlur(mask[rows, columns] * np.uint8(255), (3, 3), 0) / np.float32(255)
    shade = np.float32(dice.uniform(0.5, 0.8)) + np.float32(dice.uniform(0.4, 0.7)) * ramp(dice, *alpha.shape)
    canvas[:, rows, columns] += alpha * (color.astype(np.float32)[:, None, None] * shade - canvas[:, rows, columns])


def _color_unlike(dice: Dice, other: np.ndarray) -> np.ndarray:
    """The one of four saturated colours that differs most from another, so that most shapes can be seen."""
    colors = dice.uniforms(40, 255, 12).reshape(4, 3)
    colors[np.arange(4), dice.integers(0, 2, 4)] *= 0.3
    red, green, blue = np.abs(colors - other).T
    return colors[(red + green + blue).argmax()]
