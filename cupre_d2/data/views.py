"""The two views of an image that MoCo tells apart from those of other images."""

import math
from collections.abc import Sequence

import torch
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
