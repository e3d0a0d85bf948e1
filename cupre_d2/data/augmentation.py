"""What is drawn anew of an image each time: MoCo's two views, and the deep-clustering paper's crops, colours and turns."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor
from torchvision.transforms import v2

from cupre_d2.errors import ConfigError


class TwoViews:
    """MoCo v2's augmentation, twice, each time drawn anew.

    Random resized crop, colour jitter, greyscale, blur and horizontal flip as in the published code of MoCo v2
    (Chen et al. 2020, arXiv:2003.04297, §3); vertical flip and quarter turns are ours, as cells have no up.
    MoCo v2 blurs with a kernel of any width; ours reaches to two standard deviations, 95 % of the weight.
    Random numbers are torch's.
    """

    def __init__(
        self,
        size: int,
        scale: Sequence[float],
        jitter: Sequence[float],
        jitter_prob: float,
        gray_prob: float,
        blur_prob: float,
        blur_sigma: Sequence[float],
    ) -> None:
        """
        Args:
            size: side of a view in pixels.
            scale: smallest and largest share of the image's area that a view covers, in (0, 1].
            jitter: strengths of brightness, contrast, saturation and hue, as torchvision's ColorJitter takes them.
            jitter_prob, gray_prob, blur_prob: probabilities in [0, 1].
            blur_sigma: smallest and largest standard deviation of the blur, pixels of the view.

        Raises:
            ConfigError: a value out of range; the message names its key in INPUT.VIEWS.
        """
        _expect(size >= 1, "SIZE", size, "at least 1 pixel")
        _expect(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, "SCALE", scale, "0 < smallest <= largest <= 1")
        _expect(
            len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5,
            "JITTER",
            jitter,
            "brightness, contrast, saturation and hue, none negative, hue at most 0.5",
        )
        for key, probability in (("JITTER_PROB", jitter_prob), ("GRAY_PROB", gray_prob), ("BLUR_PROB", blur_prob)):
            _expect(0 <= probability <= 1, key, probability, "a number from 0 to 1")
        _expect(
            len(blur_sigma) == 2 and 0 < blur_sigma[0] <= blur_sigma[1] <= size / 4,
            "BLUR_SIGMA",
            blur_sigma,
            "0 < smallest <= largest <= SIZE / 4",
        )
        brightness, contrast, saturation, hue = jitter
        kernel = 2 * math.ceil(2 * blur_sigma[1]) + 1
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=tuple(scale), antialias=True),
                v2.RandomApply([v2.ColorJitter(brightness, contrast, saturation, hue)], p=jitter_prob),
                v2.RandomGrayscale(p=gray_prob),
                v2.RandomApply([v2.GaussianBlur(kernel, sigma=tuple(blur_sigma))], p=blur_prob),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]),
            ]
        )

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Two views, uint8 tensors 3 x size x size, of a uint8 tensor 3xHxW whose channels are RGB."""
        return self._view(image), self._view(image)

    def _view(self, image: Tensor) -> Tensor:
        # A turn leaves strides that a data loader's shared memory would copy, pixel by pixel.
        return self._transform(image).contiguous(memory_format=torch.contiguous_format)


def _expect(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"INPUT.VIEWS.{key} {value}: expected {expected}")


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
