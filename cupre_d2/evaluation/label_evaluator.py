"""Metrics of label images as an evaluator of Detectron2."""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import create_small_table

from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.evaluation.cells import Detections, TrueCells, paint, pixels
from cupre_d2.evaluation.image_results import ImageResults
from cupre_d2.evaluation.label_metrics import (
    Counts,
    Overlap,
    aggregated_jaccard_index,
    dsb2018_score,
    match,
    overlap_of_masks,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageScores:
    """Of one image.

    Attributes:
        counts: at each threshold. panoptic: at an IoU of more than 0.5.
    """

    dsb2018: float
    aji: float
    panoptic: Counts
    counts: list[Counts]


class LabelEvaluator(DatasetEvaluator):
    """The DSB2018 score, AJI, panoptic quality, and what is counted at IoU thresholds, in percent.

    These metrics know no scores and give each pixel to one cell: detections below a score are left out, and where
    detections overlap, the one of the highest score has the pixel. True cells stay as they are annotated, overlapping or
    not. Classes are not told apart. Crowds are no cells; predicted cells that lie more than half in them do not count.

    Args:
        dataset_name: registered; its records are the ground truth.
        score_threshold: detections of this score and above are predictions.
        iou_thresholds: of precision, recall, F1 and accuracy; above 0 and at most 1.
        ties_match: whether an IoU of just such a threshold is a match, as with StarDist and Cellpose. The DSB2018 score
            and panoptic quality have a rule of their own: it is none.

    Raises:
        ConfigError: thresholds out of range.
    """

    def __init__(
        self,
        dataset_name: str,
        score_threshold: float = 0.5,
        iou_thresholds: Sequence[float] = (0.5, 0.75, 0.9),
        ties_match: bool = True,
    ) -> None:
        if not all(0 < threshold <= 1 for threshold in iou_thresholds):
            raise ConfigError(f"TEST.LABELS.IOU_THRESHOLDS {tuple(iou_thresholds)}: expected numbers above 0, at most 1")
        self._name = dataset_name
        self._score_threshold = score_threshold
        self._iou_thresholds = tuple(iou_thresholds)
        self._strict = not ties_match
        self._images: ImageResults[ImageScores] = ImageResults(dataset_name)

    def reset(self) -> None:
        self._images.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Measures each image; errors as of `add`."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            self.add(image["image_id"], Detections.of_instances(instances[instances.scores >= self._score_threshold]))

    def add(self, image_id: Hashable, detections: Detections) -> None:
        """Measures an image by its detections, such as a results file's.

        Raises:
            DatasetError: an image_id that is not the data set's; unusable ground truth.
        """
        record = self._images.record(image_id)
        kept = detections[np.flatnonzero(detections.scores >= self._score_threshold)]
        self.add_labels(image_id, paint(kept.masks, kept.scores, record["height"], record["width"]))

    def add_labels(self, image_id: Hashable, labels: np.ndarray) -> None:
        """Measures an image by its predicted label image, H x W of whole numbers.

        Raises:
            DatasetError: as of `add`, and a label image of another size or type.
        """
        record = self._images.record(image_id)
        if labels.shape != (record["height"], record["width"]) or labels.dtype.kind not in "biu":
            raise DatasetError(
                f"predictions on {self._name!r}: image_id {image_id!r}: label image of {labels.shape} {labels.dtype}; "
                f"expected whole numbers, {(record['height'], record['width'])}"
            )
        self._images.add(image_id, self._measure(record, labels))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"labels": {name: percent}}; None on processes other than the first.

        - DSB2018, AJI: mean over images.
        - PQ: panoptic quality; mIoU: the mean IoU of matches, both of IoU > 0.5 and with the counts of all images added.
        - F1_50, precision_50, recall_50, accuracy_50 and so on: at each IoU threshold, with the counts of all images added.

        Edge cases are as in `label_metrics`; the means over no image at all are NaN.

        Raises:
            DatasetError: an image_id is there twice; unusable ground truth.
        """
        gathered = self._images.gather()
        if gathered is None:
            return None
        images = [
            result or self._measure(record, np.zeros((record["height"], record["width"]), np.int32))
            for record, result in gathered
        ]
        panoptic = sum((image.panoptic for image in images), Counts())
        fractions = {
            "DSB2018": float(np.mean([image.dsb2018 for image in images])) if images else float("nan"),
            "AJI": float(np.mean([image.aji for image in images])) if images else float("nan"),
            "PQ": panoptic.panoptic_quality,
            "mIoU": panoptic.mean_iou,
        }
        for index, threshold in enumerate(self._iou_thresholds):
            counts = sum((image.counts[index] for image in images), Counts())
            values = {"F1": counts.f1, "precision": counts.precision, "recall": counts.recall, "accuracy": counts.accuracy}
            fractions |= {f"{name}_{100 * threshold:g}": value for name, value in values.items()}
        percents = {name: 100 * value for name, value in fractions.items()}
        logger.info("%s, labels:\n%s", self._name, create_small_table(percents))
        return OrderedDict(labels=percents)

    def _measure(self, record: Mapping[str, Any], labels: np.ndarray) -> ImageScores:
        truth = TrueCells.of(record, self._name)
        labels = _without_crowds(labels, truth)
        cells: Overlap = overlap_of_masks(truth[np.flatnonzero(~truth.crowd)].masks, labels)
        return ImageScores(
            dsb2018_score(cells),
            aggregated_jaccard_index(cells),
            match(cells, 0.5, strict=True),
            [match(cells, threshold, self._strict) for threshold in self._iou_thresholds],
        )


def _without_crowds(labels: np.ndarray, truth: TrueCells) -> np.ndarray:
    """The label image without the cells that lie more than half in crowds."""
    if not truth.crowd.any():
        return labels
    crowds = [pixels(mask) for mask in truth[np.flatnonzero(truth.crowd)].masks]
    inside, counts = np.unique(labels.ravel(order="F")[np.unique(np.concatenate(crowds))], return_counts=True)
    values, areas = np.unique(labels, return_counts=True)
    gone = inside[2 * counts > areas[np.searchsorted(values, inside)]]
    return np.where(np.isin(labels, gone), 0, labels)
