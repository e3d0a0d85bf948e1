"""The names and numbers people read off COCO's precision and recall, in percent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cupre_d2.evaluation.coco_matching import IOU_THRESHOLDS
from cupre_d2.evaluation.coco_scores import Scores

_PERCENT_THRESHOLDS = np.round(100 * IOU_THRESHOLDS).astype(int).tolist()


@dataclass(frozen=True)
class Summary:
    """How to read precision and recall.

    Attributes:
        max_dets: the limits on detections an image that recall was measured with.
        area_names: of the area ranges after the first, which is all areas.
    """

    max_dets: Sequence[int]
    area_names: Sequence[str]

    def overall(self, categories: Sequence[Scores]) -> dict[str, float]:
        """Means over categories, which are one or more; NaN where no cell counts."""
        precision = np.stack([scores.precision for scores in categories])
        recall = np.stack([scores.recall for scores in categories])
        areas = list(enumerate(self.area_names, start=1))
        values = {"AP": _percent(precision[..., 0])}
        values |= {f"AP{iou}": _percent(precision[:, _PERCENT_THRESHOLDS.index(iou), :, 0]) for iou in (50, 75)}
        values |= {f"AP{name}": _percent(precision[..., area]) for area, name in areas}
        values |= {f"AR{limit}": _percent(recall[:, :, 0, index]) for index, limit in enumerate(self.max_dets)}
        values |= {f"AR{name}": _percent(recall[:, :, area, -1]) for area, name in areas}
        values["AFNR"] = 100 - values[f"AR{self.max_dets[-1]}"]
        for index, iou in enumerate(_PERCENT_THRESHOLDS):
            values[f"precision-IoU{iou}"] = _percent(precision[:, index, :, 0])
            values[f"recall-IoU{iou}"] = _percent(recall[:, index, 0, -1])
        return values

    def of_group(self, name: str, categories: Sequence[Scores]) -> dict[str, float]:
        """The main numbers of a category or of a type of cells, each name with "-" and the group's at its end."""
        values = self.overall(categories)
        return {f"{metric}-{name}": values[metric] for metric in self.group_metrics}

    @property
    def group_metrics(self) -> list[str]:
        return ["AP", "AP50", "AP75", f"AR{self.max_dets[-1]}", "AFNR"]


def area_names(limits: Sequence[float]) -> list[str]:
    """s, m and l for the ranges between two limits, else their bounds.

    >>> area_names([324, 961])
    ['s', 'm', 'l']
    >>> area_names([50])
    ['_0_50', '_50_inf']
    """
    if len(limits) == 2:
        return ["s", "m", "l"]
    bounds = [0, *limits, float("inf")]
    return [f"_{low:g}_{high:g}" for low, high in zip(bounds, bounds[1:], strict=False)]


def _percent(values: np.ndarray) -> float:
    """Mean of what is defined."""
    defined = values[~np.isnan(values)]
    return float(100 * defined.mean()) if defined.size else float("nan")
