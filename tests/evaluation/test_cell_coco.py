import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator

SIZE = 80
NAME = "cell_coco_test"
AREA_RANGES = [[0, 1e10], [0, 324], [324, 961], [961, 1e10]]

Record = dict[str, Any]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def box_of(mask: np.ndarray) -> list[float]:
    """XYXY."""
    rows, columns = np.nonzero(mask)
    return [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]


def annotation(mask: np.ndarray, category: int = 0, iscrowd: int = 0) -> dict[str, Any]:
    return {
        "bbox": box_of(mask),
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)),
        "category_id": category,
        "iscrowd": iscrowd,
    }


def record(image_id: str | int, annotations: list[dict[str, Any]]) -> Record:
    return {"file_name": "", "image_id": image_id, "height": SIZE, "width": SIZE, "annotations": annotations}


def detected(masks: list[np.ndarray], scores: list[float], categories: list[int]) -> Instances:
    return Instances(
        (SIZE, SIZE),
        pred_boxes=Boxes(torch.tensor([box_of(mask) for mask in masks]).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(categories, dtype=torch.long),
        pred_masks=torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, SIZE, SIZE)),
    )


@pytest.fixture()
def registered() -> Iterator[Callable[[list[Record]], list[Record]]]:
    """Registers records under NAME for the time of a test."""

    def register(records: list[Record]) -> list[Record]:
        DatasetCatalog.register(NAME, lambda: records)
        return records

    yield register
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def run(evaluator: CellCOCOEvaluator, predictions: dict[Any, Instances]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for image_id, instances in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results is not None
    return results


def random_scene(seed: int, images: int = 4, classes: int = 3) -> tuple[list[Record], dict[Any, Instances]]:
    """Overlapping discs of several classes with crowds, and detections near some of them, off others, or anywhere.

    Scores have three decimals, so that some are equal.
    """
    rng = np.random.default_rng(seed)
    records, predictions = [], {}
    for number in range(images):
        annotations, masks, categories = [], [], []
        for _ in range(rng.integers(0, 15)):
            x, y = rng.uniform(0, SIZE, 2)
            radius = rng.uniform(3, 22)
            category = int(rng.integers(classes))
            annotations.append(annotation(disc(x, y, radius), category, int(rng.random() < 0.15)))
            for _ in range(rng.integers(0, 3)):
                shift, grown = rng.normal(0, 0.12 * radius, 2), radius * rng.uniform(0.8, 1.2)
                masks.append(disc(np.clip(x + shift[0], 0, SIZE - 1), np.clip(y + shift[1], 0, SIZE - 1), grown))
                categories.append(category if rng.random() < 0.9 else int(rng.integers(classes)))
        for _ in range(rng.integers(0, 4)):
            masks.append(disc(rng.uniform(0, SIZE), rng.uniform(0, SIZE), rng.uniform(2, 20)))
            categories.append(int(rng.integers(classes)))
        records.append(record(f"image-{number}", annotations))
        predictions[f"image-{number}"] = detected(masks, rng.random(len(masks)).round(3).tolist(), categories)
    return records, predictions


def with_pycocotools(
    records: list[Record], predictions: dict[Any, Instances], task: str, max_dets: list[int]
) -> dict[str, float]:
    """The same numbers by the official implementation, from scratch."""
    images = [{"id": number, "height": SIZE, "width": SIZE} for number, _ in enumerate(records)]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for number, item in enumerate(records):
        for a in item["annotations"]:
            x0, y0, x1, y1 = a["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": a["category_id"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(mask_util.decode(a["segmentation"]).sum()),
                    "iscrowd": a["iscrowd"],
                    "segmentation": a["segmentation"],
                }
            )
        found = predictions[item["image_id"]]
        for box, score, category, mask in zip(
            found.pred_boxes.tensor.tolist(),
            found.scores.tolist(),
            found.pred_classes.tolist(),
            found.pred_masks,
            strict=True,
        ):
            detection = {"image_id": number, "category_id": category, "score": score}
            if task == "bbox":
                detection["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            else:
                detection["segmentation"] = mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            detections.append(detection)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category, "name": str(category)} for category in range(3)],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(detections), task)
    evaluation.params.maxDets = max_dets
    evaluation.params.areaRng = AREA_RANGES
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def percent(values: np.ndarray) -> float:
        return 100 * np.mean(values[values > -1]) if (values > -1).any() else math.nan

    values = {"AP": percent(precision[:, :, :, 0, 2]), "AP50": percent(precision[0, :, :, 0, 2])}
    values["AP75"] = percent(precision[5, :, :, 0, 2])
    values |= {f"AP{area}": percent(precision[:, :, :, i, 2]) for i, area in enumerate("sml", start=1)}
    values |= {f"AR{limit}": percent(recall[:, :, 0, i]) for i, limit in enumerate(max_dets)}
    values |= {f"AR{area}": percent(recall[:, :, i, 2]) for i, area in enumerate("sml", start=1)}
    return values


@pytest.mark.parametrize("max_dets", [[100, 500, 2000], [2, 5, 9]])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(registered, seed: int, max_dets: list[int]) -> None:
    records, predictions = random_scene(seed)
    registered(records)
    results = run(CellCOCOEvaluator(NAME, max_dets), predictions)
    for task in ("bbox", "segm"):
        expected = with_pycocotools(records, predictions, task, max_dets)
        assert list(results[task]) == list(expected)
        assert results[task] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert 5 < results[task]["AP"] < 95


def test_order_of_images_does_not_matter(registered) -> None:
    records, predictions = random_scene(7)
    registered(records)
    forward = run(CellCOCOEvaluator(NAME), predictions)
    backward = run(CellCOCOEvaluator(NAME), dict(reversed(predictions.items())))
    assert forward["segm"] == pytest.approx(backward["segm"], nan_ok=True)


def test_perfect_predictions_are_100_percent_whatever_the_form_of_the_truth(registered) -> None:
    square = np.zeros((SIZE, SIZE), bool)
    square[10:30, 40:70] = True
    polygon = annotation(square) | {"segmentation": [[40, 10, 70, 10, 70, 30, 40, 30]]}
    bytes_rle = annotation(disc(20, 60, 12), category=1)
    text_rle = annotation(disc(60, 60, 9))
    text_rle["segmentation"]["counts"] = text_rle["segmentation"]["counts"].decode()
    flat = disc(12, 12, 8).ravel(order="F").astype(int)
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=-1)), append=len(flat)).tolist()
    plain_rle = annotation(disc(12, 12, 8), category=1) | {"segmentation": {"size": [SIZE, SIZE], "counts": runs}}
    plain_rle["bbox"] = BoxMode.convert(plain_rle["bbox"], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    plain_rle["bbox_mode"] = BoxMode.XYWH_ABS
    registered([record(5, [polygon, bytes_rle]), record(9, [text_rle, plain_rle])])
    predictions = {
        5: detected([square, disc(20, 60, 12)], [0.9, 0.2], [0, 1]),
        9: detected([disc(60, 60, 9), disc(12, 12, 8)], [0.5, 0.4], [0, 1]),
    }
    results = run(CellCOCOEvaluator(NAME), predictions)
    for task in ("bbox", "segm"):
        values = {key: value for key, value in results[task].items() if not math.isnan(value)}
        assert values == pytest.approx(dict.fromkeys(values, 100.0))
        assert {"AP", "AR100", "AR2000", "APs", "APm"} <= values.keys()


def test_classes_are_told_apart(registered) -> None:
    registered([record(0, [annotation(disc(20, 20, 10), category=0)])])
    wrong = {0: detected([disc(20, 20, 10)], [0.9], [1])}
    assert run(CellCOCOEvaluator(NAME), wrong)["segm"]["AP"] == 0


def test_without_detections_everything_is_zero(registered, caplog: pytest.LogCaptureFixture) -> None:
    registered([record("a", [annotation(disc(20, 20, 8)), annotation(disc(50, 50, 14)), annotation(disc(40, 40, 30))])])
    with caplog.at_level(logging.WARNING):
        results = run(CellCOCOEvaluator(NAME), {"a": detected([], [], [])})
    assert set(results["bbox"].values()) == set(results["segm"].values()) == {0.0}
    assert "detects nothing" in caplog.text
    print_csv_format(results)


def test_without_ground_truth_everything_is_nan(registered, caplog: pytest.LogCaptureFixture) -> None:
    registered([{"file_name": "", "image_id": 1, "height": SIZE, "width": SIZE}])
    results = run(CellCOCOEvaluator(NAME), {1: detected([disc(20, 20, 10)], [0.9], [0])})
    assert all(math.isnan(value) for task in results.values() for value in task.values())
    assert "no ground truth" in caplog.text


@pytest.mark.parametrize(
    ("height", "width", "areas"),
    [(17, 19, "s"), (18, 18, "sm"), (25, 13, "m"), (31, 31, "ml"), (37, 26, "l")],  # 323, 324, 325, 961, 962 pixels
)
def test_area_limits(registered, height: int, width: int, areas: str) -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[5 : 5 + height, 5 : 5 + width] = True
    registered([record(0, [annotation(mask)])])
    results = run(CellCOCOEvaluator(NAME), {0: detected([mask], [0.9], [0])})
    for task in ("bbox", "segm"):
        assert {area for area in "sml" if not math.isnan(results[task][f"AP{area}"])} == set(areas)


def test_area_of_a_detection_is_its_masks(registered) -> None:
    """A false positive with a large box and a small mask counts among the small masks, and among the large boxes."""
    small = disc(20, 20, 8)
    ring = disc(50, 50, 20) & ~disc(50, 50, 19.5)
    registered([record(0, [annotation(small), annotation(disc(30, 55, 24))])])
    results = run(CellCOCOEvaluator(NAME), {0: detected([ring, small], [0.9, 0.8], [0, 0])})
    assert ring.sum() < 324
    assert results["segm"]["APs"] == pytest.approx(50)
    assert results["bbox"]["APs"] == pytest.approx(100)


def test_more_than_100_detections_count(registered) -> None:
    masks = [disc(5 + 7 * column, 5 + 7 * row, 3) for row in range(11) for column in range(11)]
    registered([record(0, [annotation(mask) for mask in masks])])
    results = run(CellCOCOEvaluator(NAME), {0: detected(masks, np.linspace(1, 0.1, 121).tolist(), [0] * 121)})
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["segm"]["AR100"] == pytest.approx(100 * 100 / 121)
    assert results["segm"]["AR500"] == results["segm"]["AR2000"] == pytest.approx(100)


def test_warns_of_images_with_more_cells_than_count(registered, caplog: pytest.LogCaptureFixture) -> None:
    cells = [annotation(disc(5 + 9 * index, 20, 3)) for index in range(4)]
    crowd = annotation(disc(60, 60, 9), iscrowd=1)
    registered([record(0, cells), record(1, [*cells[:3], crowd])])
    nothing = {0: detected([], [], []), 1: detected([], [], [])}
    run(CellCOCOEvaluator(NAME, max_dets=(1, 2, 4)), nothing)
    assert "hold more cells" not in caplog.text
    run(CellCOCOEvaluator(NAME, max_dets=(1, 2, 3)), nothing)
    assert "1 images hold more cells (up to 4) than the 3 detections" in caplog.text


def test_results_file_has_the_data_sets_own_ids(registered, tmp_path: Path) -> None:
    registered([record(42, [annotation(disc(20, 20, 10), category=1)])])
    MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id = {7: 0, 90: 1}
    results = run(CellCOCOEvaluator(NAME, output_dir=str(tmp_path / "new")), {42: detected([disc(20, 20, 10)], [0.5], [1])})
    (written,) = json.loads((tmp_path / "new" / "instances_results.json").read_text())
    assert (written["image_id"], written["category_id"], written["score"]) == (42, 90, 0.5)
    assert written["bbox"] == [10, 10, 21, 21]
    assert isinstance(written["segmentation"]["counts"], str)
    assert (mask_util.decode(written["segmentation"]) == disc(20, 20, 10)).all()
    assert results["segm"]["AP"] == pytest.approx(100)


def test_reset_forgets(registered) -> None:
    registered([record(0, [annotation(disc(20, 20, 10))])])
    evaluator = CellCOCOEvaluator(NAME)
    assert run(evaluator, {0: detected([disc(60, 60, 10)], [0.9], [0])})["segm"]["AP"] == 0
    assert run(evaluator, {0: detected([disc(20, 20, 10)], [0.9], [0])})["segm"]["AP"] == pytest.approx(100)


def test_processes_are_gathered_on_the_first(registered, monkeypatch: pytest.MonkeyPatch) -> None:
    registered([record(n, [annotation(disc(20, 20, 10))]) for n in range(2)])
    other, first = CellCOCOEvaluator(NAME), CellCOCOEvaluator(NAME)
    found = {"instances": detected([disc(20, 20, 10)], [0.9], [0])}
    other.process([{"image_id": 1}], [found])
    sent: list[Any] = []

    def send(data: Any, dst: int) -> list[Any]:
        sent.append(data)
        return []

    with monkeypatch.context() as patch:
        patch.setattr(comm, "gather", send)
        patch.setattr(comm, "is_main_process", lambda: False)
        assert other.evaluate() is None
    monkeypatch.setattr(comm, "gather", lambda data, dst: [data, *sent])
    first.process([{"image_id": 0}], [found])
    results = first.evaluate()
    assert results is not None and results["segm"]["AR100"] == pytest.approx(100)


def test_images_not_evaluated_are_missed_cells_and_said(registered, caplog: pytest.LogCaptureFixture) -> None:
    registered([record(n, [annotation(disc(20, 20, 10))]) for n in range(2)])
    results = run(CellCOCOEvaluator(NAME), {0: detected([disc(20, 20, 10)], [0.9], [0])})
    assert results["segm"]["AR100"] == pytest.approx(50)
    assert "1 of 2 images were not evaluated" in caplog.text


def test_unknown_image(registered) -> None:
    registered([record("a", [annotation(disc(20, 20, 10))])])
    with pytest.raises(DatasetError, match="image_id 'b'; expected ids such as 'a'"):
        run(CellCOCOEvaluator(NAME), {"b": detected([], [], [])})
    with pytest.raises(DatasetError, match="image_id 1;"):
        run(CellCOCOEvaluator(NAME), {1: detected([], [], [])})


def test_repeated_images(registered) -> None:
    records = registered([record("a", [annotation(disc(20, 20, 10))])])
    evaluator = CellCOCOEvaluator(NAME)
    evaluator.reset()
    evaluator.process([{"image_id": "a"}] * 2, [{"instances": detected([], [], [])}] * 2)
    with pytest.raises(DatasetError, match="predictions on .*'a'; expected one prediction an image"):
        evaluator.evaluate()
    records.append(record("a", []))
    with pytest.raises(DatasetError, match="1 image_ids are there more than once, e.g. 'a'; expected one record"):
        run(evaluator, {"a": detected([], [], [])})


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "is missing or empty"),
        (None, "is missing or empty"),
        ([[1, 2]], "is no list of polygons"),
        ({"size": [4, 4], "counts": b"0"}, r"is an RLE of size \[4, 4\] for an image of \[80, 80\]"),
    ],
)
def test_unusable_ground_truth(registered, segmentation: Any, reason: str) -> None:
    broken = annotation(disc(20, 20, 10)) | {"segmentation": segmentation}
    registered([record("a", [annotation(disc(50, 50, 9)), broken])])
    with pytest.raises(DatasetError, match=f"image_id 'a', annotation 1, field segmentation: {reason}"):
        run(CellCOCOEvaluator(NAME), {"a": detected([], [], [])})


@pytest.mark.parametrize("values", [(), (100, 50), (0, 10), (10, 10)])
def test_limits_that_do_not_ascend(values: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="TEST.CELL_COCO.MAX_DETS"):
        CellCOCOEvaluator(NAME, max_dets=values)
    with pytest.raises(ConfigError, match="TEST.CELL_COCO.AREA_LIMITS"):
        CellCOCOEvaluator(NAME, area_limits=values)
