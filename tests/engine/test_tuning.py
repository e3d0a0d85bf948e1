"""Against a search by hand: every threshold tried, each label image measured by the evaluator's own matching."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from cupre_d2.config import default_config
from cupre_d2.data.few_shot import get_records
from cupre_d2.engine import tuning
from cupre_d2.engine.tuning import NMS, SCORE, tune
from cupre_d2.evaluation.cells import encode_mask, paint
from cupre_d2.evaluation.label_metrics import Counts, match, overlap, overlap_of_masks
from cupre_d2.modeling.watershed import Thresholds, segment


def truth_of(labels: np.ndarray, crowd: int = 0) -> tuning._Truth:
    """Of a label image; the cell of that number is a crowd."""
    height, width = labels.shape
    annotations = [
        {
            "bbox": [0, 0, 1, 1],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": encode_mask(np.asfortranarray(labels == value)),
            "iscrowd": int(value == crowd),
        }
        for value in np.unique(labels[labels > 0])
    ]
    record = {"file_name": "a", "image_id": 1, "height": height, "width": width, "annotations": annotations}
    return tuning._Truth.of(record)


LABELS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).integers(0, 5, (4, 2, 6)).astype(np.int32))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.9]), min_size=8, max_size=8))
def test_one_matching_tells_f1_at_every_threshold(images: np.ndarray, scores: list[float]) -> None:
    judged, of_images = [], []
    for (true, predicted), own in zip(images.reshape(2, 2, 4, 3), np.array(scores).reshape(2, 4), strict=True):
        judged.append(truth_of(true).judge(predicted, own))
        of_images.append((true, predicted, own))
    cells = sum(len(np.unique(true[true > 0])) for true, _, _ in of_images)
    curve = tuning._Curve.of(judged, cells)
    f1 = {}
    for threshold in (0.0, 0.2, 0.4, 0.6, 1.0):
        counts = Counts()
        for true, predicted, own in of_images:
            kept = np.where(np.concatenate([[False], own >= threshold])[predicted], predicted, 0)
            counts += match(overlap(true, kept), 0.5, strict=False)
        f1[threshold] = counts.f1 if cells else None
    if cells:
        assert [curve.at(threshold) for threshold in f1] == pytest.approx(list(f1.values()))
        best, threshold = curve.best()
        assert best == pytest.approx(curve.at(threshold))
        assert best == pytest.approx(max(value for threshold, value in f1.items() if threshold < 1)) or not len(curve.scores)


def test_what_lies_in_crowds_does_not_count() -> None:
    true = np.array([[1, 1, 0, 2, 2, 2, 2, 0]])
    predicted = np.array([[1, 1, 0, 2, 3, 3, 0, 4]], np.int32)
    scores, is_true = truth_of(true, crowd=2).judge(predicted, np.array([0.9, 0.8, 0.7, 0.6]))
    assert list(zip(scores, is_true, strict=True)) == [(0.9, True), (0.6, False)]


def test_nothing_predicted() -> None:
    curve = tuning._Curve.of([truth_of(np.array([[1, 1]])).judge(np.zeros((1, 2), np.int32), np.zeros(0))], 1)
    assert curve.best() == (0.0, 1.0) and curve.at(0.5) == 0


class Detector(torch.nn.Module):
    """Says of each true cell: itself twice, shifted by 2 and 4 pixels, and of every image some small nonsense."""

    def __init__(self, cfg: CfgNode, records: list[dict[str, Any]]) -> None:
        super().__init__()
        self.nms, self.score = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        self.records = {record["image_id"]: record for record in records}

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (inputs,) = batch
        instances = self.all(self.records[inputs["image_id"]])
        kept = batched_nms(instances.pred_boxes.tensor, instances.scores, instances.pred_classes, self.nms)
        instances = instances[kept]
        return [{"instances": instances[instances.scores > self.score]}]

    @staticmethod
    def all(record: dict[str, Any]) -> Instances:
        size = record["height"], record["width"]
        rng = np.random.default_rng(len(record["annotations"]))
        masks, scores = [], []
        for annotation in record["annotations"]:
            mask = tuning_mask(annotation)
            for shift, lowest in ((0, 0.5), (2, 0.4), (4, 0.3)):
                masks.append(np.roll(mask, shift, 1))
                scores.append(rng.uniform(lowest, lowest + 0.2))
        for _ in range(20):
            mask = np.zeros(size, bool)
            top, left = rng.integers(0, 80, 2)
            mask[top : top + 9, left : left + 9] = True
            masks.append(mask)
            scores.append(rng.uniform(0.05, 0.45))
        stack = torch.from_numpy(np.stack(masks))
        instances = Instances(size, pred_masks=stack, scores=torch.tensor(scores, dtype=torch.float32))
        rows = [np.flatnonzero(mask.any(1)) for mask in masks]
        columns = [np.flatnonzero(mask.any(0)) for mask in masks]
        boxes = [(c[0], r[0], c[-1] + 1, r[-1] + 1) for r, c in zip(rows, columns, strict=True)]
        instances.pred_boxes = Boxes(torch.tensor(np.array(boxes), dtype=torch.float32))
        instances.pred_classes = torch.zeros(len(masks), dtype=torch.long)
        return instances


def tuning_mask(annotation: dict[str, Any]) -> np.ndarray:
    from pycocotools import mask

    return mask.decode(annotation["segmentation"]).astype(bool)


def base(architecture: str, images: int = 50) -> CfgNode:
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.DATASETS.TEST = ("bbbc038_train",)
    cfg.TEST.TUNING.IMAGES = images
    cfg.INPUT.MIN_SIZE_TEST = 0
    return cfg


def test_a_detector_is_tuned_as_by_hand(small_datasets: Path) -> None:
    cfg, records = base("GeneralizedRCNN", images=4), get_records("bbbc038_train")
    found = tune(cfg, lambda own: Detector(own, records))
    assert found is not None and (found.images, found.of_images) == (4, len(records))
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, 4).round().astype(int)]
    assert found.cells == sum(len(record["annotations"]) for record in chosen)

    def f1(score: float, nms: float) -> float:
        counts = Counts()
        for record in chosen:
            own = base("GeneralizedRCNN")
            own.merge_from_list([SCORE, score, NMS, nms])
            (output,) = Detector(own, records)([record])
            instances = output["instances"]
            rles = [encode_mask(mask) for mask in instances.pred_masks.numpy()]
            labels = paint(rles, instances.scores.numpy(), record["height"], record["width"])
            counts += match(overlap_of_masks([a["segmentation"] for a in record["annotations"]], labels), 0.5, strict=False)
        return 100 * counts.f1

    by_hand = {pair: f1(*pair) for pair in product(np.arange(0.05, 0.8, 0.05).tolist(), tuning.NMS_GRID)}
    assert found.f1_before == pytest.approx(f1(0.05, 0.5))
    assert found.f1 == pytest.approx(f1(found.thresholds[SCORE], found.thresholds[NMS]), abs=1.0)
    assert found.f1 >= max(by_hand.values()) - 1.0 and found.f1 > found.f1_before + 10


class Network(torch.nn.Module):
    """Certain of each cell's middle, and less so of a veil that joins the cells; its whole background is p = 0.15."""

    border = "inner"
    thresholds = Thresholds(seed=0.5, score=0.1)

    def __init__(self, records: list[dict[str, Any]]) -> None:
        super().__init__()
        self.records = {record["image_id"]: record for record in records}

    def probabilities(self, batch: list[dict[str, Any]]) -> Iterator[np.ndarray]:
        for inputs in batch:
            record = self.records[inputs["image_id"]]
            cell = np.full((record["height"], record["width"]), 0.15, np.float32)
            for annotation in record["annotations"]:
                mask = tuning_mask(annotation)
                rows, columns = np.nonzero(mask)
                cell[mask] = np.maximum(cell[mask], 0.55)
                far = np.hypot(rows - rows.mean(), columns - columns.mean())
                cell[rows[far < 3], columns[far < 3]] = 0.95
            yield np.stack([1 - cell, cell, 0 * cell])


def test_a_watershed_is_tuned(small_datasets: Path) -> None:
    cfg, records = base("SemanticWatershed"), get_records("bbbc038_train")[:6]
    cfg.merge_from_list(["MODEL.SEMANTIC_WATERSHED.SEED_THRESHOLD", 0.5, "MODEL.SEMANTIC_WATERSHED.SCORE_THRESHOLD", 0.1])
    DatasetCatalog.register("six", lambda: records)
    cfg.DATASETS.TEST = ("six",)
    try:
        found = tune(cfg, lambda _: Network(records))
    finally:
        DatasetCatalog.remove("six")
    assert found is not None

    def f1(thresholds: Thresholds) -> float:
        counts = Counts()
        for record, probabilities in zip(records, Network(records).probabilities(records), strict=True):
            labels, _ = segment(probabilities, "inner", thresholds)
            counts += match(overlap_of_masks([a["segmentation"] for a in record["annotations"]], labels), 0.5, strict=False)
        return 100 * counts.f1

    assert list(found.thresholds) == [
        f"MODEL.SEMANTIC_WATERSHED.{n}_THRESHOLD" for n in ("SEED", "BACKGROUND", "RELIEF", "SCORE")
    ]
    assert found.f1 == pytest.approx(f1(Thresholds(*found.thresholds.values())), abs=0.5)
    assert found.f1_before == pytest.approx(f1(Network.thresholds), abs=0.5)
    assert found.f1 > found.f1_before and found.thresholds["MODEL.SEMANTIC_WATERSHED.SEED_THRESHOLD"] > 0.55


def test_what_is_best_already_stays(small_datasets: Path) -> None:
    cfg, records = base("GeneralizedRCNN"), get_records("bbbc038_train")
    found = tune(cfg, lambda own: Detector(own, records))
    assert found is not None
    cfg.merge_from_list([item for pair in found.thresholds.items() for item in pair])
    again = tune(cfg, lambda own: Detector(own, records))
    assert again is not None and again.thresholds == found.thresholds and again.f1 == again.f1_before


def test_without_annotated_images(small_datasets: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cfg = base("GeneralizedRCNN")
    cfg.DATASETS.TEST = ()
    assert tune(cfg, pytest.fail) is None and "not tuned, as DATASETS.TEST holds no annotated cell" in caplog.text
    cfg.DATASETS.TEST, cfg.TEST.TUNING.ENABLED = ("bbbc038_train",), False
    assert tune(cfg, pytest.fail) is None
