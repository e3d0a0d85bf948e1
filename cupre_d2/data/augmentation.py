"""The deep-clustering paper's augmentation of cell images: crops of a fixed size, colours, turns, flips, scale."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T


class ScaledCrop(T.Augmentation):
    """A random square of the image, padded with black where the image is smaller, and now and then scaled.

    What is scaled is the crop, not the image: the same, at the cost of the crop alone.

    Args:
        size: side of the result, pixels.
        scale: smallest and largest factor, above 0; between them its logarithm is uniform (the paper gives the limits).
        scale_prob: how often the factor is drawn, 0 to 1; else it is 1.
    """

    def __init__(self, size: int, scale: Sequence[float], scale_prob: float) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        smallest, largest = map(math.log, self.scale)
        factor = math.exp(np.random.uniform(smallest, largest)) if np.random.uniform() < self.scale_prob else 1.0
        side = max(1, round(self.size / factor))
        height, width = image.shape[:2]
        rows, columns = min(height, side), min(width, side)
        top, left = np.random.randint(height - rows + 1), np.random.randint(width - columns + 1)
        steps: list[T.Transform] = [T.CropTransform(left, top, columns, rows, width, height)]
        if (rows, columns) != (side, side):
            steps.append(T.PadTransform(0, 0, side - columns, side - rows, columns, rows, 0, 0))
        if side != self.size:
            steps.append(T.ResizeTransform(side, side, self.size, self.size))
        return T.TransformList(steps)


class QuarterTurn(T.Transform):
    """Turns counter-clockwise by a number of right angles, exactly.

    Args:
        turns: 0 to 3.
        height, width: of the image before.
    """

    def __init__(self, turns: int, height: int, width: int) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(img, self.turns))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        sides = self.height, self.width
        for turn in range(self.turns):
            coords = np.stack([coords[:, 1], sides[(turn + 1) % 2] - coords[:, 0]], axis=1)
        return coords


class RandomQuarterTurn(T.Augmentation):
    """One, two or three right angles."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return QuarterTurn(np.random.randint(1, 4), *image.shape[:2])


class ChannelSwap(T.Augmentation):
    """The three channels in a random order, which may be the one they are in."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        order = np.random.permutation(3)
        return T.ColorTransform(lambda pixels: np.ascontiguousarray(pixels[..., order]))


class Inversion(T.Augmentation):
    """Dark for bright, 0 to 255."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.ColorTransform(lambda pixels: 255 - pixels)


def cell_augmentations(cfg: CfgNode) -> list[Any]:
    """INPUT.CELL_AUGMENTATION as Detectron2's augmentations; random numbers are NumPy's."""
    keys = cfg.INPUT.CELL_AUGMENTATION
    by_chance = [
        ChannelSwap(),
        Inversion(),
        RandomQuarterTurn(),
        T.RandomFlip(prob=1.0, horizontal=True, vertical=False),
        T.RandomFlip(prob=1.0, horizontal=False, vertical=True),
    ]
    return [ScaledCrop(keys.SIZE, keys.SCALE, keys.SCALE_PROB), *(T.RandomApply(one, keys.PROB) for one in by_chance)]
