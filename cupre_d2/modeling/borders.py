"""Targets of semantic segmentation, background / cell / border, from the masks of instances."""

import torch
from detectron2.structures import BitMasks, PolygonMasks
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
