"""From the probabilities of background, cell and border to instances, by marker-controlled watershed (paper 003)."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from scipy import ndimage
from skimage.segmentation import watershed

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.borders import BORDER, CELL


@dataclass(frozen=True)
class Thresholds:
    """The paper's, all on a probability p from 0 to 1.

    Attributes:
        seed: connected pixels with p(cell) above this start a cell.
        background: pixels with p(foreground) below this start the background.
        relief: pixels with p(foreground) above this are low ground, which is flooded first.
        score: cells whose mean probability is below this are dropped.

    Raises:
        ConfigError: one outside 0..1, or `background` above `relief`.
    """

    seed: float = 0.8
    background: float = 0.2
    relief: float = 0.3
    score: float = 0.6

    def __post_init__(self) -> None:
        for name in ("seed", "background", "relief", "score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{_key(name)} {getattr(self, name)}: expected a number from 0 to 1")
        if self.background > self.relief:
            raise ConfigError(f"{_key('background')} {self.background}: expected at most {_key('relief')}, {self.relief}")


def _key(name: str) -> str:
    return f"MODEL.SEMANTIC_WATERSHED.{name.upper()}_THRESHOLD"


def segment(probabilities: np.ndarray, border: str, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
    """Cells of an image.

    The paper knows p(cell) alone. What it leaves open, with borders that are part of a cell, is what they count:

    - "inner": as foreground, p(foreground) = p(cell) + p(border).
    - "outer": not, p(foreground) = p(cell). Where cells touch, the gap between them stays background.
    - "both": half of the border is a cell's; a border counts so much that it is neither low ground nor a start of the
      background, and is shared between cell and background where they meet halfway. Background that is narrower than two
      borders has no start and goes to the cells.

    Args:
        probabilities: 3 x H x W float32 of background, cell, border, 0..1.
        border: "inner", "outer" or "both", as the network learned it.

    Returns:
        H x W int32, 0 for background and 1..N for cells, numbered by row of their seeds; N float32, the mean probability
        over a cell's pixels of being part of a cell: p(cell) + p(border), or p(cell) for "outer".
    """
    cell = probabilities[CELL]
    foreground = cell if border == "outer" else cell + probabilities[BORDER]
    count, markers = cv2.connectedComponents((cell > thresholds.seed).view(np.uint8), connectivity=4)
    if count == 1:
        return np.zeros(cell.shape, np.int32), np.zeros(0, np.float32)
    flooded = foreground
    if border == "both":
        flooded = cell + (thresholds.background + thresholds.relief) / 2 * probabilities[BORDER]
    # A seed stays one, whatever the thresholds are.
    is_background = (flooded < thresholds.background) & (markers == 0)
    markers[is_background] = count
    relief = (flooded <= thresholds.relief).view(np.uint8)
    # Background that meets nothing but background has nothing to flood, and is most of the image. Without it only pixels
    # that two cells reach at the same time may fall to the other one.
    in_play = cv2.dilate((~is_background).view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
    labels = watershed(relief, markers, mask=in_play).astype(np.int32, copy=False)
    labels[labels == count] = 0
    return _keep_likely(labels, foreground, thresholds.score)


def _keep_likely(labels: np.ndarray, foreground: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The cells whose mean probability is not below the threshold, numbered anew, and that mean."""
    areas = np.bincount(labels.ravel())
    scores = np.bincount(labels.ravel(), foreground.ravel()) / np.maximum(areas, 1)
    kept = (areas > 0) & (scores >= threshold)
    kept[0] = False
    if not kept[1:].all():
        labels = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]
    return labels, scores[kept].clip(0, 1).astype(np.float32)


def resize(labels: np.ndarray, scores: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells of a label image and their scores at another size, by the nearest pixel; those that vanish are left out."""
    if labels.shape == (height, width):
        return labels, scores
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip((height, width), labels.shape, strict=True)
    )
    resized = labels[rows[:, None], columns]
    left = np.bincount(resized.ravel(), minlength=len(scores) + 1) > 0
    left[0] = False
    return np.where(left, np.cumsum(left), 0).astype(np.int32)[resized], scores[left[1:]]


def to_instances(labels: np.ndarray, scores: np.ndarray) -> Instances:
    """Detectron2's predicted instances of a label image, on the CPU.

    Args:
        labels: H x W int32; 1..N are cells, each with a pixel at least.
        scores: N float32.

    Returns:
        Of H x W: pred_masks (N x H x W bool), pred_boxes (XYXY), scores, pred_classes (0, as cells are of one class).
    """
    pixels = np.flatnonzero(labels)
    # Pages of zeros that no cell lies on are never touched.
    masks = np.zeros((len(scores), labels.size), bool)
    masks[labels.ravel()[pixels] - 1, pixels] = True
    places = ndimage.find_objects(labels, len(scores))
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.float32).reshape(-1, 4)
    return Instances(
        labels.shape,
        pred_masks=torch.from_numpy(masks.reshape(-1, *labels.shape)),
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.from_numpy(scores),
        pred_classes=torch.zeros(len(scores), dtype=torch.long),
    )
