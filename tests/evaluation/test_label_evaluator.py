import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_util

from cupre_d2 import add_cupre_config
from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.evaluation.build import build_evaluators
from cupre_d2.evaluation.label_evaluator import LabelEvaluator

NAME = "label_evaluator_test"
HEIGHT, WIDTH = 12, 40

Box = tuple[int, int, int, int]


def mask_of(box: Box) -> np.ndarray:
    """x, y, width, height."""
    x, y, width, height = box
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def record(image_id: Any, boxes: list[Box], crowds: list[Box] | None = None) -> dict[str, Any]:
    annotations = [
        {
            "bbox": list(box),
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": mask_util.encode(np.asfortranarray(mask_of(box), dtype=np.uint8)),
            "category_id": 0,
            "iscrowd": int(number >= len(boxes)),
        }
        for number, box in enumerate(boxes + (crowds or []))
    ]
    return {"file_name": "", "image_id": image_id, "height": HEIGHT, "width": WIDTH, "annotations": annotations}


def detected(boxes: list[Box], scores: list[float]) -> Instances:
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(boxes), dtype=torch.long),
        pred_masks=torch.from_numpy(np.array([mask_of(box) for box in boxes], bool).reshape(-1, HEIGHT, WIDTH)),
    )


@pytest.fixture()
def registered() -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    def register(records: list[dict[str, Any]]) -> None:
        DatasetCatalog.register(NAME, lambda: records)

    yield register
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def run(evaluator: LabelEvaluator, predictions: dict[Any, Instances]) -> dict[str, float]:
    evaluator.reset()
    for image_id, instances in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results is not None and list(results) == ["labels"]
    return results["labels"]


def test_perfect(registered) -> None:
    cells = [(0, 0, 5, 5), (10, 2, 6, 8)]
    registered([record("a", cells), record("b", [])])
    results = run(LabelEvaluator(NAME), {"a": detected(cells, [0.9, 0.6]), "b": detected([], [])})
    assert results == dict.fromkeys(results, 100.0)
    at_thresholds = [f"{name}_{iou}" for iou in (50, 75, 90) for name in ("F1", "precision", "recall", "accuracy")]
    assert list(results) == ["DSB2018", "AJI", "PQ", "mIoU", *at_thresholds]


def test_means_over_images_and_sums_of_counts(registered) -> None:
    """An image with one of three cells found, at an IoU of 16/20, and one with a cell and a false one."""
    registered([record(1, [(0, 0, 10, 2), (15, 0, 5, 5), (25, 0, 5, 5)]), record(2, [(0, 0, 4, 4)])])
    predictions = {
        1: detected([(0, 0, 8, 2)], [0.9]),
        2: detected([(0, 0, 4, 4), (20, 6, 2, 2)], [0.9, 0.8]),
    }
    results = run(LabelEvaluator(NAME, iou_thresholds=[0.5, 0.8]), predictions)
    # 16/20 is above six of the ten thresholds, 0.50 to 0.75, and not above 0.80.
    assert results["DSB2018"] == pytest.approx(100 * (6 / 10 * 1 / 3 + 1 / 2) / 2)
    assert results["AJI"] == pytest.approx(100 * (16 / (20 + 50) + 16 / (16 + 4)) / 2)
    assert results["PQ"] == pytest.approx(100 * (0.8 + 1) / (2 + 1 / 2 + 2 / 2))
    assert results["mIoU"] == pytest.approx(90)
    assert results["precision_50"] == results["precision_80"] == pytest.approx(200 / 3)
    assert results["recall_50"] == pytest.approx(50)
    assert results["accuracy_50"] == pytest.approx(40)
    assert results["F1_50"] == pytest.approx(100 * 2 / 3.5)
    strict = run(LabelEvaluator(NAME, iou_thresholds=[0.5, 0.8], ties_match=False), predictions)
    assert strict["precision_80"] == pytest.approx(100 / 3)
    assert {name: strict[name] for name in list(strict)[:8]} == {name: results[name] for name in list(results)[:8]}


def test_scores_leave_out_and_put_on_top(registered) -> None:
    registered([record(1, [(0, 0, 10, 4)])])
    kept, doubled, low = (0, 0, 10, 4), (0, 0, 10, 3), (20, 0, 5, 5)
    results = run(LabelEvaluator(NAME), {1: detected([kept, low], [0.5, 0.49])})
    assert results["precision_50"] == 100
    # The second detection has the pixels of the first but for one row.
    results = run(LabelEvaluator(NAME), {1: detected([kept, doubled], [0.6, 0.7])})
    assert (results["precision_50"], results["recall_50"]) == (50, 100)
    assert results["mIoU"] == pytest.approx(75)
    # A detection below others altogether is none.
    results = run(LabelEvaluator(NAME), {1: detected([doubled, kept], [0.6, 0.7])})
    assert (results["precision_50"], results["mIoU"]) == (100, 100)
    results = run(LabelEvaluator(NAME, score_threshold=0.95), {1: detected([kept], [0.9])})
    assert results["recall_50"] == 0 and math.isnan(results["mIoU"])


def test_crowds_are_not_counted(registered) -> None:
    registered([record(1, [(0, 0, 5, 5)], crowds=[(20, 0, 10, 10), (25, 0, 10, 10)])])
    results = run(LabelEvaluator(NAME), {1: detected([(0, 0, 5, 5), (22, 1, 4, 4), (28, 3, 4, 4)], [0.9, 0.8, 0.7])})
    assert results["F1_50"] == 100
    half_inside = detected([(0, 0, 5, 5), (18, 1, 4, 4)], [0.9, 0.8])
    assert run(LabelEvaluator(NAME), {1: half_inside})["precision_50"] == 50


def test_label_images(registered) -> None:
    registered([record(1, [(0, 0, 5, 5)])])
    evaluator = LabelEvaluator(NAME)
    evaluator.reset()
    evaluator.add_labels(1, (600 * mask_of((0, 0, 5, 4))).astype(np.uint16))
    results = evaluator.evaluate()
    assert results is not None and results["labels"]["mIoU"] == pytest.approx(80)
    evaluator.reset()
    for labels in (np.zeros((3, 3), int), np.zeros((HEIGHT, WIDTH))):
        with pytest.raises(DatasetError, match=r"image_id 1: label image of .*; expected whole numbers, \(12, 40\)"):
            evaluator.add_labels(1, labels)


def test_images_not_evaluated_are_missed_cells_and_said(registered, caplog: pytest.LogCaptureFixture) -> None:
    registered([record(n, [(0, 0, 5, 5)]) for n in range(2)])
    results = run(LabelEvaluator(NAME), {0: detected([(0, 0, 5, 5)], [0.9])})
    assert (results["recall_50"], results["DSB2018"]) == (50, 50)
    assert "1 of 2 images were not evaluated" in caplog.text


def make_cfg(**test: Any) -> CfgNode:
    cfg = get_cfg()
    add_cupre_config(cfg)
    for key, value in test.items():
        cfg.TEST[key] = value
    return cfg


def test_settings_reach_the_evaluators(registered) -> None:
    cfg = make_cfg(EVALUATORS=["labels"])
    cfg.TEST.LABELS.SCORE_THRESHOLD, cfg.TEST.LABELS.IOU_THRESHOLDS, cfg.TEST.LABELS.TIES_MATCH = 0.8, (0.6,), False
    registered([record(1, [(0, 0, 10, 2)])])
    (evaluator,) = build_evaluators(cfg, NAME)
    assert isinstance(evaluator, LabelEvaluator)
    results = run(evaluator, {1: detected([(0, 0, 6, 2), (20, 0, 3, 3)], [0.9, 0.7])})
    assert (results["recall_60"], results["mIoU"]) == (0, pytest.approx(60))
    cfg.TEST.LABELS.IOU_THRESHOLDS = (0.5, 1.2)
    with pytest.raises(ConfigError, match="TEST.LABELS.IOU_THRESHOLDS"):
        build_evaluators(cfg, NAME)
