"""A fluorescence-like microscope: bright nuclei in clusters that touch and overlap, on a dark, uneven ground."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from cupre_d2.data.synthetic.exact import Dice, blur, blur_far, clouds, uneven

# Fewest pixels of a mask.
SMALLEST = 40

_TRIES = 12
# Side of the texture that nuclei are cut out of.
_GRAIN = 128

# Image (H x W x 3 uint8, RGB), masks (N x H x W bool), class indices (N).
Drawing = tuple[np.ndarray, np.ndarray, list[int]]


def _reach(radius: float, elongation: float) -> int:
    """Pixels from a nucleus' middle that its light ends within: with room for an uneven outline and blur."""
    return int(1.2 * radius * float(np.sqrt(elongation))) + 4


@dataclass(frozen=True)
class Fluorescence:
    """What can be set; pairs are a range from which each image draws. None of it is from a paper.

    Attributes:
        nuclei: how many in an image of 192 px; goes with the area.
        diameter: mean of an image, pixels. size_spread: relative deviation of its nuclei's.
        limits: diameter of the smallest and of the largest nucleus, pixels.
        elongation: length by width, mean of an image.
        clustering: share of nuclei that lie against one placed before.
        overlap: largest share of the smaller nucleus that another one covers.
        brightness_spread: relative deviation of the nuclei's brightness. texture: of the grain within them.
        out_of_focus: share of nuclei above or below the focal plane. out_of_focus_blur: theirs, sigma in pixels.
        defocus: blur of the lens, sigma in pixels.
        haze, ground: light from elsewhere, of a nucleus' light. unevenness: of the illumination, relative.
        photons: that a nucleus' light is counted by; the fewer, the more shot noise. read_noise: of a nucleus' light.
        gain: grey values of a nucleus' light.
    """

    nuclei: tuple[int, int] = (5, 25)
    diameter: tuple[float, float] = (14.0, 25.0)
    size_spread: float = 0.18
    limits: tuple[float, float] = (10.0, 30.0)
    elongation: tuple[float, float] = (1.05, 1.35)
    clustering: float = 0.65
    overlap: float = 0.25
    brightness_spread: float = 0.3
    texture: float = 0.13
    out_of_focus: float = 0.2
    out_of_focus_blur: tuple[float, float] = (1.0, 2.0)
    defocus: tuple[float, float] = (0.5, 1.3)
    haze: tuple[float, float] = (0.05, 0.25)
    ground: tuple[float, float] = (0.03, 0.15)
    unevenness: float = 0.25
    photons: tuple[float, float] = (40.0, 300.0)
    read_noise: float = 0.012
    gain: tuple[float, float] = (80.0, 170.0)

    def __post_init__(self) -> None:
        if min(self.nuclei[0], self.limits[0], self.elongation[0], self.photons[0]) <= 0:
            raise ValueError("nuclei, limits, elongation and photons are to be above 0")
        if _reach(self.limits[1] / 2, 1.4 * self.elongation[1]) >= _GRAIN // 2:
            raise ValueError(f"limits {self.limits} and elongation {self.elongation} make nuclei of more than 120 pixels")


DEFAULT = Fluorescence()
_HAZE_SIGMA = 12.0


class _Nucleus(NamedTuple):
    # y, x in pixels of the image.
    center: tuple[float, float]
    radius: float
    # Where in the image the next two belong.
    window: tuple[slice, slice]
    mask: np.ndarray
    light: np.ndarray


def draw_microscope(seed: int, index: int, size: int = 192, parameters: Fluorescence = DEFAULT) -> Drawing:
    """Bright nuclei on a dark ground, in clusters that touch and overlap.

    Light adds up where nuclei overlap, and both masks cover the place. A mask follows the outline, where the light
    falls to half, before the lens blurs it. Where no place is left after twelve tries a nucleus, there are fewer.

    Args:
        seed, index: from 0; the same pair gives the same bytes on any machine.
        size: side, pixels, at least 32.
        parameters: see `Fluorescence`.

    Returns:
        size x size x 3 uint8 image; N x size x size bool masks of at least 40 pixels; class indices, all 0.
    """
    dice = Dice(seed, index, 1)
    wanted = max(1, round(dice.integer(*parameters.nuclei) * size * size / 192 / 192))
    nuclei = _place(dice, wanted, size, parameters)
    light = np.zeros((size, size), np.float32)
    masks = np.zeros((len(nuclei), size, size), bool)
    for mask, nucleus in zip(masks, nuclei, strict=True):
        light[nucleus.window] += nucleus.light
        mask[nucleus.window] = nucleus.mask
    return cv2.cvtColor(_photograph(dice, light, parameters), cv2.COLOR_GRAY2RGB), masks, [0] * len(nuclei)


def _place(dice: Dice, wanted: int, size: int, parameters: Fluorescence) -> list[_Nucleus]:
    diameter = dice.uniform(*parameters.diameter)
    elongation = dice.uniform(*parameters.elongation)
    grain = clouds(dice, 64, _GRAIN) + clouds(dice, 24, _GRAIN)
    # What clouds vary by, doubled, is about their texture's deviation.
    grain = np.maximum(1 + np.float32(2 * parameters.texture) * grain, 0)
    covered = np.zeros((size, size), bool)
    nuclei: list[_Nucleus] = []
    smallest = size**2
    for _ in range(_TRIES * wanted):
        drawn = diameter * max(0.3, 1 + dice.normal(parameters.size_spread))
        radius = min(max(drawn, parameters.limits[0]), parameters.limits[1]) / 2
        center = dice.uniform(0, size), dice.uniform(0, size)
        if nuclei and dice.uniform() < parameters.clustering:
            center = _beside(dice, nuclei[dice.integer(0, len(nuclei) - 1)], radius)
        if min(center) < 0 or max(center) >= size or _is_too_near(center, radius, nuclei, parameters.overlap):
            continue
        nucleus = _draw(dice, center, radius, elongation, grain, size, parameters)
        pixels = np.count_nonzero(nucleus.mask)
        shared = np.count_nonzero(nucleus.mask & covered[nucleus.window])
        if pixels < SMALLEST or shared > parameters.overlap * min(pixels, smallest):
            continue
        covered[nucleus.window] |= nucleus.mask
        smallest = min(smallest, pixels)
        nuclei.append(nucleus)
        if len(nuclei) == wanted:
            break
    return nuclei


def _beside(dice: Dice, neighbour: _Nucleus, radius: float) -> tuple[float, float]:
    cosine, sine = dice.direction()
    distance = (radius + neighbour.radius) * dice.uniform(0.75, 1.0)
    return neighbour.center[0] + distance * sine, neighbour.center[1] + distance * cosine


def _is_too_near(center: tuple[float, float], radius: float, nuclei: list[_Nucleus], overlap: float) -> bool:
    """Spares drawing what cannot but cover more of another nucleus than is allowed."""
    for nucleus in nuclei:
        rows, columns = center[0] - nucleus.center[0], center[1] - nucleus.center[1]
        nearest = max(1 - 1.6 * overlap, 0) * (radius + nucleus.radius)
        if rows * rows + columns * columns < nearest * nearest:
            return True
    return False


def _draw(
    dice: Dice,
    center: tuple[float, float],
    radius: float,
    elongation: float,
    grain: np.ndarray,
    size: int,
    parameters: Fluorescence,
) -> _Nucleus:
    elongation *= min(max(0.7, 1 + dice.normal(0.1)), 1.4)
    reach = _reach(radius, elongation)
    top, left = (max(round(middle) - reach, 0) for middle in center)
    bottom, right = (min(round(middle) + reach + 1, size) for middle in center)
    rows = (np.arange(top, bottom, dtype=np.float32) - np.float32(center[0]))[:, None]
    columns = (np.arange(left, right, dtype=np.float32) - np.float32(center[1]))[None]
    depth = _depth(dice, rows, columns, radius, elongation)
    down, across = (dice.integer(0, _GRAIN - length) for length in depth.shape)
    brightness = max(0.35, 1 + dice.normal(parameters.brightness_spread))
    light = np.sqrt(np.maximum(depth, 0)) * np.float32(0.3 * brightness) + np.float32(0.7 * brightness)
    # The edge is 1.5 pixels wide, half as bright on the outline.
    light *= np.minimum(np.maximum(depth * np.float32(radius / 1.5) + np.float32(0.5), 0), 1)
    light *= grain[down : down + depth.shape[0], across : across + depth.shape[1]]
    if dice.uniform() < parameters.out_of_focus:
        light = blur(light, dice.uniform(*parameters.out_of_focus_blur))
    return _Nucleus(center, radius, (slice(top, bottom), slice(left, right)), depth >= 0, light)


def _depth(dice: Dice, rows: np.ndarray, columns: np.ndarray, radius: float, elongation: float) -> np.ndarray:
    """1 in the middle of an irregular ellipse, 0 on its outline, negative outside."""
    cosine, sine = dice.direction()
    stretch = float(np.sqrt(elongation))
    along = columns * np.float32(cosine / stretch) + rows * np.float32(sine / stretch)
    across = rows * np.float32(cosine * stretch) - columns * np.float32(sine * stretch)
    distance = np.sqrt(along * along + across * across)
    safe = np.maximum(distance, np.float32(1e-3))
    cos, sin = along / safe, across / safe
    squared = cos * cos
    # 1 + a cos 2x + b sin 2x + c cos 3x + d sin 3x, as polynomials of cos x and sin x.
    a, b, c, d = (dice.normal(deviation) for deviation in (0.032, 0.032, 0.021, 0.021))
    outline = squared * np.float32(4 * c) + cos * np.float32(2 * a) + sin * np.float32(2 * b) - np.float32(3 * c)
    outline *= cos
    outline += (squared * np.float32(4 * d) - np.float32(d)) * sin
    outline += np.float32(1 - a)
    return 1 - distance / (np.float32(radius) * outline)


def _photograph(dice: Dice, light: np.ndarray, parameters: Fluorescence) -> np.ndarray:
    """What optics and camera add: haze, uneven illumination, defocus, shot and read noise. H x W uint8."""
    size = light.shape[0]
    haze = blur_far(light, _HAZE_SIGMA) * np.float32(dice.uniform(*parameters.haze))
    ground = np.float32(dice.uniform(*parameters.ground)) * (1 + np.float32(0.35) * uneven(dice, size))
    illumination = 1 + np.float32(parameters.unevenness) * uneven(dice, size)
    exposed = blur((light + haze + ground) * illumination, dice.uniform(*parameters.defocus))
    photons = np.float32(dice.uniform(*parameters.photons))
    noise = np.sqrt(exposed / photons + np.float32(parameters.read_noise * parameters.read_noise))
    counted = exposed + noise * dice.noise(size, size)
    counted *= np.float32(dice.uniform(*parameters.gain))
    return np.minimum(np.maximum(counted, 0, out=counted), 255, out=counted).astype(np.uint8)
