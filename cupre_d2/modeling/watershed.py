"""Instances to background, cell and border, the targets of semantic segmentation, and back: marker-controlled watershed of
their probabilities (paper 003).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from scipy import ndimage
from skimage.segmentation import watershed
from torch.nn.functional import max_pool2d

from cupre_d2.errors import ConfigError

BACKGROUND, CELL, BORDER = 0, 1, 2
KINDS = ("inner", "outer", "both")


def to_labels(masks: BitMasks | PolygonMasks, height: int, width: int) -> torch.Tensor:
    """Masks of N instances as one H x W int64: 0, or 1 + the index of the instance; where some overlap, the first."""
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks([list(polygons) for polygons in masks.polygons], height, width)
    tensor = masks.tensor
    if not len(tensor):
        return torch.zeros(height, width, dtype=torch.long, device=tensor.device)
    covered, first = tensor.to(torch.uint8).max(0)
    return torch.where(covered > 0, first + 1, 0)


def to_target(labels: torch.Tensor, kind: str, width: int) -> torch.Tensor:
    """A label image, H x W of whole numbers with 0 for background, as classes, H x W int64: 0, 1 cell, 2 border.

    The paper says neither where its border lies nor how wide it is. Distances here count pixels, diagonal steps too.

    - "inner": pixels of a cell that are at most `width` from one outside it.
    - "outer": background at most `width` from a cell, and, so that cells which touch are apart, pixels of a cell at most
      `width` from another cell.
    - "both": either.

    A cell that would be nothing but border keeps its innermost pixels as cell, or no instance would come of it. The edge of
    the image is no border.

    >>> to_target(torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 0]]), "inner", 1)
    tensor([[0, 0, 2, 1, 2, 2, 1, 2, 0]])
    >>> to_target(torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 0]]), "outer", 1)
    tensor([[0, 2, 1, 1, 2, 2, 1, 1, 2]])

    Raises:
        ConfigError: an unknown kind, or a width below 1.
    """
    check_border(kind, width)
    is_cell = labels > 0
    # How many steps a pixel of a cell can go, at most `width`, with nothing else in reach, or no other cell ("outer").
    depth = torch.zeros_like(labels)
    for reach in range(1, width + 1):
        depth += is_cell & ~_meets_other(labels, reach, background_counts=kind != "outer")
    deepest = torch.zeros(int(labels.max()) + 1, dtype=labels.dtype, device=labels.device)
    deepest.scatter_reduce_(0, labels.flatten(), depth.flatten(), "amax")
    target = torch.where(is_cell, BORDER, BACKGROUND)
    target[is_cell & (depth == deepest[labels])] = CELL
    if kind != "inner":
        target[~is_cell & (_window_max(labels, width) > 0)] = BORDER
    return target


def check_border(kind: str, width: int) -> None:
    """Raises ConfigError for a kind or width that `to_target` does not know."""
    if kind not in KINDS:
        raise ConfigError(f"MODEL.SEMANTIC_WATERSHED.BORDER {kind!r}: expected one of {', '.join(KINDS)}")
    if width < 1:
        raise ConfigError(f"MODEL.SEMANTIC_WATERSHED.BORDER_WIDTH {width}: expected at least 1")


def _meets_other(labels: torch.Tensor, reach: int, background_counts: bool) -> torch.Tensor:
    """Whether a cell's pixel has one of another label within reach."""
    seen = labels if background_counts else torch.where(labels > 0, labels, labels.max() + 1)
    return (_window_max(labels, reach) != labels) | (-_window_max(-seen, reach) != labels)


def _window_max(labels: torch.Tensor, reach: int) -> torch.Tensor:
    """Largest label within reach; outside the image there is none."""
    # Exact for up to 2^24 cells.
    return max_pool2d(labels[None].float(), 2 * reach + 1, stride=1, padding=reach)[0].to(labels.dtype)


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
