"""Thresholds for predicting, tuned on the validation images.

An evaluation reads AP, which wants every detection; a label image wants the right ones. What is tuned is F1 at an IoU of
0.5 of label images as they are predicted: where cells overlap, the one of the higher score has the pixels. The network is
run once; then all is arithmetic on what it said:

- The score threshold takes no search. A cell's pixels depend on those of higher scores alone, so that dropping the lower
  ones changes nothing of the others: one matching tells F1 at every threshold.
- A detector's NMS is applied again to what a loose one left, for each IoU of NMS_GRID. A box that only the stricter NMS
  would have kept, as the one that hid it is itself hidden, is missing then; to know it, every candidate of the network
  would need a mask.
- The watershed's other three are searched by coordinate, from the config's, on the probabilities.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.structures import Instances
from torch import nn

from cupre_d2.data.catalog import Record
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.mappers import DetectionMapper
from cupre_d2.engine.results import thresholds
from cupre_d2.evaluation.cells import TrueCells, pixels
from cupre_d2.modeling.watershed import Thresholds, resize, segment

logger = logging.getLogger(__name__)

SCORE, NMS = "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST"
# Beside the config's own. Cells of one class seldom overlap by more; two boxes of one cell do.
NMS_GRID = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
# Detections of lower scores are not looked at, unless the config's threshold is lower.
LOWEST_SCORE = 0.05
WATERSHED = "MODEL.SEMANTIC_WATERSHED."
# In the order of the search: what decides most comes first.
WATERSHED_GRID = {
    "seed": (0.5, 0.6, 0.7, 0.8, 0.9),
    "background": (0.1, 0.2, 0.3, 0.4),
    "relief": (0.2, 0.3, 0.5),
}
ROUNDS = 2

Build = Callable[[CfgNode], nn.Module]


@dataclass(frozen=True)
class Tuning:
    """
    Attributes:
        thresholds: by config key.
        f1: with them, percent. f1_before: with the config's.
        images: that it was tuned on. of_images: that there are.
        cells: true ones in those images.
    """

    thresholds: dict[str, float]
    f1: float
    f1_before: float
    images: int
    of_images: int
    cells: int

    def __str__(self) -> str:
        found = ", ".join(f"{key.rpartition('.')[2]} {value:.3g}" for key, value in self.thresholds.items())
        some = f"{self.images} of {self.of_images}" if self.images < self.of_images else str(self.images)
        return (
            f"{found}: F1 {self.f1:.1f} % on {some} validation images, {self.f1_before:.1f} % with the config's thresholds"
        )


def tune(cfg: CfgNode, build: Build) -> Tuning | None:
    """Finds the thresholds of the highest F1 on at most TEST.TUNING.IMAGES images of DATASETS.TEST, evenly chosen.

    The config's stay where nothing is better. In this process alone.

    Args:
        build: gives the trained network, for evaluation, under a config that differs in thresholds.

    Returns:
        None, which is logged, where it is not wanted, or there is nothing to tune on.
    """
    own = thresholds(cfg)
    if not cfg.TEST.TUNING.ENABLED or not own:
        return None
    records = [record for name in cfg.DATASETS.TEST for record in get_records(name) if "annotations" in record]
    indices = np.linspace(0, max(len(records) - 1, 0), cfg.TEST.TUNING.IMAGES).round().astype(int)
    chosen = [records[index] for index in np.unique(indices)] if records else []
    truths = [_Truth.of(record) for record in chosen]
    cells = sum(truth.count for truth in truths)
    if not cells:
        logger.info("thresholds: not tuned, as DATASETS.TEST holds no annotated cell; the package has the config's")
        return None
    search = _tune_watershed if cfg.MODEL.META_ARCHITECTURE == "SemanticWatershed" else _tune_detector
    found, f1, before = search(cfg, build, chosen, truths)
    tuning = Tuning(found, 100 * f1, 100 * before, len(chosen), len(records), cells)
    logger.info(f"thresholds tuned: {tuning}")
    return tuning


@dataclass(frozen=True)
class _Truth:
    """The true cells of an image, which may overlap.

    Attributes:
        count: of them. areas: their pixels.
        places: P int64, the pixels of all of them, column * H + row. ids: P int64, whose they are.
        crowd: pixels that are no cell's and where nothing that is predicted counts.
    """

    count: int
    areas: np.ndarray
    places: np.ndarray
    ids: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, record: Record) -> "_Truth":
        truth = TrueCells.of(record, record["file_name"])
        parts = [pixels(mask) for mask in truth.masks]
        nothing = np.zeros(0, np.int64)
        cells = [part for part, crowd in zip(parts, truth.crowd, strict=True) if not crowd]
        crowds = [part for part, crowd in zip(parts, truth.crowd, strict=True) if crowd]
        areas = np.array([len(part) for part in cells], np.int64)
        return cls(
            len(cells),
            areas,
            np.concatenate([nothing, *cells]),
            np.repeat(np.arange(len(cells)), areas),
            np.unique(np.concatenate([nothing, *crowds])),
        )

    def judge(self, labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which predicted cells are true, by an IoU of 0.5 and more.

        Args:
            labels: H x W of 0..N. scores: N.

        Returns:
            Of the predicted cells that have a pixel and do not lie more than half in crowds: scores, and whether true.
        """
        flat, bins = labels.ravel(order="F"), len(scores) + 1
        areas = np.bincount(flat, minlength=bins)
        under = flat[self.places]
        hit = under > 0
        pairs, shared = np.unique(self.ids[hit] * bins + under[hit], return_counts=True)
        true, predicted = np.divmod(pairs, bins)
        unions = self.areas[true] + areas[predicted] - shared
        good = np.flatnonzero(2 * shared >= unions)
        # By score, then by IoU: who comes first has the cell. Only where true cells overlap is there anything to decide.
        good = good[np.lexsort((-shared[good] / unions[good], -scores[predicted[good] - 1]))]
        good = good[np.sort(np.unique(predicted[good], return_index=True)[1])]
        good = good[np.sort(np.unique(true[good], return_index=True)[1])]
        is_true = np.zeros(bins, bool)
        is_true[predicted[good]] = True
        counts = (areas > 0) & (is_true | (2 * np.bincount(flat[self.crowd], minlength=bins) <= areas))
        return scores[counts[1:]], is_true[1:][counts[1:]]


@dataclass(frozen=True)
class _Curve:
    """F1 at every score threshold, of the predictions of all images.

    Attributes:
        scores: N, falling. f1: N + 1, with the first k predictions.
    """

    scores: np.ndarray
    f1: np.ndarray

    @classmethod
    def of(cls, judged: list[tuple[np.ndarray, np.ndarray]], cells: int) -> "_Curve":
        scores, is_true = (np.concatenate(column) for column in zip(*judged, strict=True))
        order = np.argsort(-scores, kind="stable")
        hits = np.concatenate([[0], np.cumsum(is_true[order])])
        return cls(scores[order].astype(np.float64), 2 * hits / (np.arange(len(hits)) + cells))

    def at(self, threshold: float) -> float:
        """With the predictions of this score and above."""
        return float(self.f1[np.searchsorted(-self.scores, -threshold, side="right")])

    def best(self) -> tuple[float, float]:
        """The highest F1, and a threshold halfway between the scores that it divides; (0, 1) without any prediction."""
        if not len(self.scores):
            return 0.0, 1.0
        # A threshold cannot divide predictions of one score.
        ends = np.flatnonzero(np.diff(self.scores, append=-1.0))
        end = int(ends[np.argmax(self.f1[ends + 1])])
        last = self.scores[end]
        following = self.scores[end + 1] if end + 1 < len(self.scores) else last
        threshold = (last + following) / 2 if following < last else max(0.0, last - 1e-4)
        return float(self.f1[end + 1]), round(float(threshold), 6)


Found = tuple[dict[str, float], float, float]


def _tune_detector(cfg: CfgNode, build: Build, records: list[Record], truths: list[_Truth]) -> Found:
    own = thresholds(cfg)
    grid = sorted({*NMS_GRID, own[NMS]})
    loose = cfg.clone()
    loose.defrost()
    loose.merge_from_list([SCORE, min(own[SCORE], LOWEST_SCORE), NMS, grid[-1]])
    judged: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {iou: [] for iou in grid}
    for (record, outputs), truth in zip(_run(loose, build(loose), records), truths, strict=True):
        found = _Detected.of(outputs["instances"])
        known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for iou in grid:
            kept = found.suppress(iou)
            if kept.tobytes() not in known:
                labels = found.paint(kept, (record["height"], record["width"]))
                known[kept.tobytes()] = truth.judge(labels, found.scores[kept])
            judged[iou].append(known[kept.tobytes()])
    cells = sum(truth.count for truth in truths)
    curves = {iou: _Curve.of(of_iou, cells) for iou, of_iou in judged.items()}
    # Of equal ones the first, the config's.
    iou = max(sorted(curves, key=lambda one: one != own[NMS]), key=lambda one: curves[one].best()[0])
    f1, score = curves[iou].best()
    before = curves[own[NMS]].at(own[SCORE])
    return ({SCORE: score, NMS: iou}, f1, before) if f1 > before else (own, before, before)


@dataclass(frozen=True)
class _Detected:
    """A detector's instances of an image, by falling score.

    Attributes:
        scores: N float64. parts: of each its place, (row, column), and its mask there.
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    scores: np.ndarray
    parts: list[tuple[int, int, np.ndarray]]

    @classmethod
    def of(cls, instances: Instances) -> "_Detected":
        instances = instances.to("cpu")
        instances = instances[instances.scores.argsort(descending=True, stable=True)]
        parts = []
        for mask in instances.pred_masks.numpy():
            left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
            # A copy, so that the masks of the whole image can go.
            parts.append((top, left, mask[top : top + rows, left : left + columns].copy()))
        return cls(instances.pred_boxes.tensor, instances.pred_classes, instances.scores.double().numpy(), parts)

    def suppress(self, iou: float) -> np.ndarray:
        """Indices, ascending, of those that NMS leaves."""
        return np.sort(batched_nms(self.boxes, torch.from_numpy(self.scores).float(), self.classes, iou).numpy())

    def paint(self, kept: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A label image of these: 1 + place among them; the higher score has the pixels."""
        labels = np.zeros(size, np.int32)
        for label, index in reversed(list(enumerate(kept.tolist(), start=1))):
            top, left, mask = self.parts[index]
            labels[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = label
        return labels


def _tune_watershed(cfg: CfgNode, build: Build, records: list[Record], truths: list[_Truth]) -> Found:
    model: Any = build(cfg)
    own, border = model.thresholds, model.border
    said = _run(cfg, lambda inputs: list(model.probabilities(inputs)), records)
    # Half the memory; that of large images is most of what this needs.
    maps = [probabilities.astype(np.float16) for _, probabilities in said]
    cells = sum(truth.count for truth in truths)
    curves: dict[tuple[float, ...], _Curve] = {}

    def curve(seed: float, background: float, relief: float) -> _Curve:
        key = (seed, background, relief)
        if key not in curves:
            judged = []
            for record, probabilities, truth in zip(records, maps, truths, strict=True):
                found = segment(probabilities.astype(np.float32), border, Thresholds(*key, score=0.0))
                judged.append(truth.judge(*resize(*found, record["height"], record["width"])))
            curves[key] = _Curve.of(judged, cells)
        return curves[key]

    place = {"seed": own.seed, "background": own.background, "relief": own.relief}
    before, f1 = curve(**place).at(own.score), curve(**place).best()[0]
    for _ in range(ROUNDS):
        start = dict(place)
        for name, values in WATERSHED_GRID.items():
            for value in values:
                tried = {**place, name: value}
                if tried["background"] <= tried["relief"] and (there := curve(**tried).best()[0]) > f1:
                    place, f1 = tried, there
        if place == start:
            break
    if f1 <= before:
        return thresholds(cfg), before, before
    found = {**place, "score": curve(**place).best()[1]}
    return {f"{WATERSHED}{name.upper()}_THRESHOLD": value for name, value in found.items()}, f1, before


@torch.no_grad()
def _run(
    cfg: CfgNode, model: Callable[[list[Mapping[str, Any]]], Any], records: list[Record]
) -> Iterator[tuple[Record, Any]]:
    """Each record and what the network says of its image, one at a time."""
    mapper = DetectionMapper(cfg, False)
    for record in records:
        yield record, model([mapper(record)])[0]
