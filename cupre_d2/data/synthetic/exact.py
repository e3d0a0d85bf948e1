"""Random numbers and filters whose results are the same, bit for bit, on any machine.

That leaves whole numbers, IEEE's + - * / and square root one at a time, PCG64's stream, and OpenCV's filters of 8 and 16
bits, which are fixed-point. Sines, logarithms, NumPy's normal and Poisson deviates, sums of floats in an order that
depends on the processor, and OpenCV's filters of floats are not among them.
"""

import cv2
import numpy as np

# Uniform bytes in a normal deviate, and their standard deviation.
_BYTES = 4
_DEVIATION = float(np.sqrt(_BYTES * (256**2 - 1) / 12))
# Grey values of the 16 bits that a filtered surface from 0 to 1 takes; above, there is room for sums.
_ONE = 4096


class Dice:
    """Random numbers of one image, told by its seeds."""

    def __init__(self, *seeds: int) -> None:
        self._bits = np.random.PCG64(seeds)
        self._rng = np.random.Generator(self._bits)

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, the latter included."""
        # Several times as fast as the generator's own way, and as good as uniform: what is left over is 2**-40 or less.
        return low + (self._bits.random_raw() * (high - low + 1) >> 64)

    def integers(self, low: int, high: int, count: int) -> list[int]:
        """Several of them."""
        return [self.integer(low, high) for _ in range(count)]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * self._rng.random()

    def uniforms(self, low: float, high: float, count: int) -> np.ndarray:
        """Several of them, float64."""
        return low + (high - low) * self._rng.random(count)

    def normal(self, deviation: float = 1.0) -> float:
        """A number of mean 0, as the sum of twelve uniform ones is distributed: normally, but for the far tails."""
        # Whole numbers of 16 bits: how `sum` rounds floats depends on Python's version.
        total = 0
        for word in self._bits.random_raw(3).tolist():
            total += (word & 0xFFFF) + (word >> 16 & 0xFFFF) + (word >> 32 & 0xFFFF) + (word >> 48)
        return (total - 6 * (2**16 - 1)) / 2**16 * deviation

    def direction(self) -> tuple[float, float]:
        """Cosine and sine of an angle; about uniform, from the rational points of the circle, turned by quarters."""
        slope = self.uniform(-0.41421356, 0.41421356)
        cosine, sine = (1 - slope * slope) / (1 + slope * slope), 2 * slope / (1 + slope * slope)
        turned = ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))
        return turned[self.integer(0, 3)]

    def noise(self, *shape: int) -> np.ndarray:
        """Float32 array of mean 0 and deviation 1, normal but for the far tails: sums of four uniform bytes."""
        parts = self._rng.integers(0, 256, (_BYTES, *shape), np.uint8)
        total = parts[0].astype(np.int16)
        for part in parts[1:]:
            total += part
        total -= np.int16(_BYTES * 255 // 2)
        return total.astype(np.float32) * np.float32(1 / _DEVIATION)

    def bytes(self, *shape: int) -> np.ndarray:
        """Uniform uint8 array."""
        return self._rng.integers(0, 256, shape, np.uint8)


def blur(surface: np.ndarray, sigma: float) -> np.ndarray:
    """A float32 surface from 0 to 15, blurred by a Gaussian of that many pixels, to 1/4096; what is below 0 is 0."""
    return _blur(_fixed(surface), sigma).astype(np.float32) * np.float32(1 / _ONE)


def blur_far(surface: np.ndarray, sigma: float) -> np.ndarray:
    """`blur` for a large sigma, at a quarter of the size; where a side is no multiple of 4, up to 2 pixels aside."""
    height, width = surface.shape
    blurred = _blur(_fixed(surface[2::4, 2::4]), sigma / 4)
    whole = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return whole.astype(np.float32) * np.float32(1 / _ONE)


def _fixed(surface: np.ndarray) -> np.ndarray:
    fixed = surface * np.float32(_ONE) + np.float32(0.5)
    return np.minimum(np.maximum(fixed, 0, out=fixed), 2**16 - 1, out=fixed).astype(np.uint16)


def _blur(fixed: np.ndarray, sigma: float) -> np.ndarray:
    width = 2 * int(3 * sigma + 0.5) + 1
    return cv2.GaussianBlur(fixed, (width, width), sigma)


def clouds(dice: Dice, cells: int, size: int) -> np.ndarray:
    """A float32 surface, -1 to 1, that changes over a `cells`-th of the image: size x size."""
    surface = cv2.resize(dice.bytes(cells, cells), (size, size), interpolation=cv2.INTER_LINEAR_EXACT)
    return surface / np.float32(127.5) - np.float32(1)


def uneven(dice: Dice, size: int) -> np.ndarray:
    """A smooth float32 surface over the whole image, about -1 to 1: size x size."""
    steps = np.arange(size, dtype=np.float32) * np.float32(2 / (size - 1)) - np.float32(1)
    a, b, c, d, e = (np.float32(weight) for weight in dice.uniforms(-0.5, 0.5, 5))
    surface = (c * steps)[:, None] * steps
    surface += (a * steps + d * (steps * steps))[:, None]
    surface += b * steps + e * (steps * steps)
    return surface


def ramp(dice: Dice, height: int, width: int) -> np.ndarray:
    """A float32 plane that rises from 0 to 1 in any direction, height x width."""
    cosine, sine = dice.direction()
    rows, columns = np.ogrid[:height, :width]
    plane = rows * sine + columns * cosine
    low, high = plane.min(), plane.max()
    return ((plane - low) / max(high - low, 1e-6)).astype(np.float32)
