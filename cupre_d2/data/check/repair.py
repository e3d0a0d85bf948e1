"""Repairing one annotation."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from cupre_d2.data.check.masks import clip, is_degenerate, is_outside, points_of, read_mask, to_box

# Findings about an annotation that leave nothing to repair.
DROPPED = ("unusable entry", "unknown category id", "malformed mask", "empty mask", "double contour")
_OF_MASK = ("degenerate polygon", "polygon outside the image")
_OF_BOX = ("malformed box", "box without area", "box outside the image", "box contradicts mask")
_OF_AREA = "malformed area"
REPAIRED = (*_OF_MASK, *_OF_BOX, _OF_AREA)


# Coordinates can be absurd.
@np.errstate(all="ignore")
def repair(
    annotation: Mapping[str, Any], kinds: Collection[str], height: int, width: int
) -> tuple[dict[str, Any] | None, str]:
    """An annotation without the defects `kinds`, in an image of that size in pixels.

    Returns:
        The annotation as COCO has it, or None if it is to be dropped; and what was done.
    """
    dropped = next((kind for kind in DROPPED if kind in kinds), None)
    if dropped:
        return None, f"dropped ({dropped})"
    repaired, done = dict(annotation), []
    if any(kind in kinds for kind in _OF_MASK):
        repaired["segmentation"] = _whole_polygons(annotation["segmentation"], height, width)
        done.append("polygons cut to what is in the image" if _OF_MASK[1] in kinds else "degenerate polygons left out")
    mask = read_mask(repaired["segmentation"], height, width)
    if mask.rle is None or mask.extent is None:
        return None, "dropped (no pixel of it is in the image)"
    if done:
        repaired["area"] = mask.area
    if any(kind in kinds for kind in _OF_BOX):
        repaired["bbox"] = to_box(mask.extent)
        done.append("box computed from the mask")
    if _OF_AREA in kinds:
        repaired["area"] = mask.area
        done.append("area computed from the mask")
    return repaired, ", ".join(done)


def to_coco(annotation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """A record's annotation, which has a mask with pixels, as COCO has it; without ids."""
    segmentation = annotation["segmentation"]
    mask = read_mask(segmentation, height, width)
    assert mask.rle is not None and mask.extent is not None
    if isinstance(segmentation, Mapping):
        plain: Any = {"size": [height, width], "counts": mask.rle["counts"]}
    else:
        plain = [np.asarray(polygon).tolist() for polygon in segmentation]
    return {
        "category_id": annotation["category_id"] + 1,
        "bbox": annotation.get("bbox") or to_box(mask.extent),
        "area": mask.area if annotation.get("area") is None else annotation["area"],
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "segmentation": plain,
    }


def _whole_polygons(segmentation: list[Any], height: int, width: int) -> list[list[float]]:
    parts = []
    for part in segmentation:
        points = points_of(part)
        if points is None or is_degenerate(points):
            continue
        if is_outside(points, height, width):
            points = clip(points, height, width)
        if not is_degenerate(points):
            parts.append(points.ravel().tolist())
    return parts
