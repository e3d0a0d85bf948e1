import re

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util

from cupre_d2.report.pictures import outline


def redrawn(path: str, height: int, width: int) -> np.ndarray:
    """What a browser would fill by the even-odd rule, and the outline itself."""
    contours = []
    for part in re.findall(r"M([^Mz]*)z", path):
        steps = np.array([[int(n) for n in re.findall(r"-?\d+", step)] for step in part.split("l")])
        contours.append(steps.cumsum(axis=0).astype(np.int32)[:, None])
    canvas = np.zeros((height, width), np.uint8)
    cv2.drawContours(canvas, contours, -1, 1, cv2.FILLED)
    cv2.drawContours(canvas, contours, -1, 1, 1)
    return canvas


@pytest.mark.parametrize("seed", range(8))
def test_outline_gives_the_mask_back(seed: int) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((50, 70)), (0, 0), 3)
    mask = np.asfortranarray(noise > np.quantile(noise, 0.7), np.uint8)
    drawn = redrawn(outline(mask_util.encode(mask), 0), 50, 70)
    assert (drawn == mask).all()
    coarse = redrawn(outline(mask_util.encode(mask), 0.5), 50, 70)
    assert (coarse != mask).mean() < 0.03


def test_small_masks() -> None:
    mask = np.zeros((9, 9), np.uint8, order="F")
    assert outline(mask_util.encode(mask), 0.5) == ""
    mask[4, 7] = 1
    assert outline(mask_util.encode(mask), 0.5) == "M7 4z"
