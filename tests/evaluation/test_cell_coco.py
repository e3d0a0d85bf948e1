import contextlib
import io
import json
import logging
import math
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
from cupre_d2.evaluation.cells import Detections
from tests.evaluation.pycocotools_numbers import of_group, run_pycocotools, summarise

SIZE = 80
NAME = "cell_coco_test"
LIVECELL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "livecell/annotations/LIVECell")
AREA_RANGES = [[0, 1e10], [0, 324], [324, 961], [961, 1e10]]

Record = dict[str, Any]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def rectangle(column: int, row: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[9 * row : 9 * row + height, 9 * column : 9 * column + width] = True
    return mask


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


def to_coco(
    records: list[Record], predictions: dict[Any, Instances], classes: int = 3
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and detections as COCO's JSON."""
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for number, item in enumerate(records):
        for a in item["annotations"]:
            x0, y0, x1, y1 = a["bbox"]
            changed = {
                "id": len(annotations) + 1,
                "image_id": number,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": a.get("area", float(mask_util.decode(a["segmentation"]).sum())),
            }
            annotations.append(a | changed)
        found = predictions[item["image_id"]]
        for box, score, category, mask in zip(
            found.pred_boxes.tensor.tolist(),
            found.scores.tolist(),
            found.pred_classes.tolist(),
            found.pred_masks,
            strict=True,
        ):
            detections.append(
                {
                    "image_id": number,
                    "category_id": category,
                    "score": score,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8)),
                }
            )
    truth = {
        "info": {},
        "images": [{"id": number, "height": SIZE, "width": SIZE} for number, _ in enumerate(records)],
        "annotations": annotations,
        "categories": [{"id": category, "name": str(category)} for category in range(classes)],
    }
    return truth, detections


def expect(
    records: list[Record],
    predictions: dict[Any, Instances],
    task: str,
    max_dets: Sequence[int] = (100, 500, 2000),
    limits: Sequence[float] = (324, 961),
    names: Sequence[str] = ("s", "m", "l"),
    use_cats: bool = True,
) -> dict[str, float]:
    """All numbers by the official implementation; of categories too, but not of cell types."""
    truth, detections = to_coco(records, predictions)
    bounds = [0, *limits, 1e10]
    ranges = [[0, 1e10], *zip(bounds, bounds[1:], strict=False)]
    precision, recall = run_pycocotools(truth, detections, task, max_dets, ranges, use_cats)
    values = summarise(precision, recall, max_dets, names)
    defined = [k for k in range(precision.shape[2]) if (recall[:, k, 0] > -1).any()]
    if len(defined) > 1:
        for k in defined:
            of_class = summarise(precision[:, :, k : k + 1], recall[:, k : k + 1], max_dets, names)
            values |= of_group(str(k), of_class, max_dets[-1])
    return values


@pytest.mark.parametrize("use_cats", [True, False])
@pytest.mark.parametrize("max_dets", [[100, 500, 2000], [2, 5, 9]])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(registered, seed: int, max_dets: list[int], use_cats: bool) -> None:
    records, predictions = random_scene(seed)
    registered(records)
    results = run(CellCOCOEvaluator(NAME, max_dets, use_cats=use_cats), predictions)
    for task in ("bbox", "segm"):
        expected = expect(records, predictions, task, max_dets, use_cats=use_cats)
        assert list(results[task]) == list(expected)
        assert results[task] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert 5 < results[task]["AP"] < 95


@pytest.mark.parametrize(
    ("limits", "names"),
    [([50], ["_0_50", "_50_inf"]), ([40.5, 200, 400, 900], ["_0_40.5", "_40.5_200", "_200_400", "_400_900", "_900_inf"])],
)
def test_any_area_limits(registered, limits: list[float], names: list[str]) -> None:
    records, predictions = random_scene(11)
    registered(records)
    results = run(CellCOCOEvaluator(NAME, area_limits=limits), predictions)
    for task in ("bbox", "segm"):
        expected = expect(records, predictions, task, limits=limits, names=names)
        assert results[task] == pytest.approx(expected, abs=1e-9, nan_ok=True)


@given(data=st.data(), max_dets=st.sampled_from([(100, 500, 2000), (1, 3), (4,)]), use_cats=st.booleans())
@settings(max_examples=60, deadline=None)
def test_equals_pycocotools_on_rectangles(data: st.DataObject, max_dets: tuple[int, ...], use_cats: bool) -> None:
    """Few sizes, places and scores: full of equal IoUs, IoUs on a threshold, equal scores, repeated cells and crowds."""
    place = st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([2, 4, 9, 18, 20]), st.sampled_from([4, 18, 31]))
    records, predictions = [], {}
    for image_id in data.draw(st.permutations(range(3))):
        cells = data.draw(st.lists(st.tuples(place, st.integers(0, 1), st.booleans(), st.booleans()), max_size=6))
        annotations = [annotation(rectangle(*where), category, int(crowd)) for where, category, crowd, _ in cells]
        for one, (_, _, _, states_area) in zip(annotations, cells, strict=True):
            one |= {"area": 324.0} if states_area else {}
        found = data.draw(st.lists(st.tuples(place, st.integers(0, 1), st.sampled_from([0.25, 0.5, 0.75])), max_size=8))
        # pycocotools refuses an empty list.
        found = found or [((0, 0, 4, 4), 0, 0.5)]
        records.append(record(image_id, annotations))
        predictions[image_id] = detected(
            [rectangle(*where) for where, _, _ in found], [score for _, _, score in found], [c for _, c, _ in found]
        )
    DatasetCatalog.register(NAME, lambda: records)
    try:
        results = run(CellCOCOEvaluator(NAME, max_dets, use_cats=use_cats), predictions)
    finally:
        DatasetCatalog.pop(NAME)
        MetadataCatalog.pop(NAME, None)
    # pycocotools goes by the ids of images.
    records.sort(key=lambda item: item["image_id"])
    with contextlib.redirect_stdout(io.StringIO()):
        for task in ("bbox", "segm"):
            expected = expect(records, predictions, task, max_dets, use_cats=use_cats)
            assert results[task] == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.real_data
@pytest.mark.skipif(not LIVECELL.is_dir(), reason="no livecell")
@pytest.mark.parametrize("split", ["train", "val"])
def test_equals_pycocotools_on_livecell(registered, split: str) -> None:
    """LIVECell's polygons, boxes and areas; detections are its cells moved, repeated and left out."""
    truth = json.loads((LIVECELL / f"livecell_coco_{split}.json").read_text())
    cells_of = Counter(a["image_id"] for a in truth["annotations"])
    # Those with fewest cells, as pycocotools takes its time.
    truth["images"] = sorted(truth["images"], key=lambda image: cells_of[image["id"]])[:2]
    ids = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    rng = np.random.default_rng(0)
    detections = []
    for a in truth["annotations"]:
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            dx, dy = rng.normal(0, 1.5, 2)
            polygon = (np.array(a["segmentation"][0]).reshape(-1, 2) + (dx, dy)).ravel().tolist()
            rle = mask_util.frPyObjects([polygon], 520, 704)[0]
            box = [a["bbox"][0] + dx, a["bbox"][1] + dy, *a["bbox"][2:]]
            score = round(rng.random(), 2)
            detections.append(
                {"image_id": a["image_id"], "category_id": 1, "bbox": box, "score": score, "segmentation": rle}
            )
    records = []
    for image in truth["images"]:
        cells = [a | {"bbox_mode": BoxMode.XYWH_ABS} for a in truth["annotations"] if a["image_id"] == image["id"]]
        records.append(image | {"image_id": image["id"], "annotations": cells})
    registered(records)
    evaluator = CellCOCOEvaluator(NAME)
    evaluator.reset()
    for image in truth["images"]:
        of_image = [d for d in detections if d["image_id"] == image["id"]]
        evaluator.add(image["id"], Detections.of_results(of_image, 520, 704))
    results = evaluator.evaluate()
    assert results is not None
    for task in ("bbox", "segm"):
        numbers = run_pycocotools(truth, detections, task, (100, 500, 2000), AREA_RANGES)
        expected = summarise(*numbers, (100, 500, 2000), "sml")
        # The images are of several cell types.
        of_all = {name: value for name, value in results[task].items() if name in expected}
        assert of_all == pytest.approx(expected, abs=1e-9)
        assert 5 < of_all["APs"] < 95


def test_of_each_cell_type(registered) -> None:
    """As if its images were a data set of their own."""
    records, predictions = random_scene(3, images=5, classes=1)
    kinds = ["a", "b", "a", None, "b"]
    for item, kind in zip(records, kinds, strict=True):
        item |= {"cell_type": kind} if kind else {}
    registered(records)
    results = run(CellCOCOEvaluator(NAME), predictions)
    for task in ("bbox", "segm"):
        expected = expect(records, predictions, task)
        for kind in ("a", "b"):
            alone = [item for item in records if item.get("cell_type") == kind]
            expected |= of_group(kind, expect(alone, predictions, task), 2000)
        assert results[task] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert results[task]["AP-a"] != pytest.approx(results[task]["AP-b"], abs=1)


def test_cell_types_in_livecells_file_names(registered, caplog: pytest.LogCaptureFixture) -> None:
    files = ["/x/BV2_Phase_A1_1.tif", "/x/SkBr3_Phase_B2.tif", "/x/other.tif"]
    cell = annotation(disc(20, 20, 10))
    registered([record(number, [cell]) | {"file_name": file} for number, file in enumerate(files)])
    found = detected([disc(20, 20, 10)], [0.9], [0])
    results = run(CellCOCOEvaluator(NAME), {0: found, 1: detected([], [], []), 2: found})
    assert results["segm"]["AP-bv2"] == pytest.approx(100)
    assert results["segm"]["AFNR-skbr3"] == pytest.approx(100)
    assert results["segm"]["AR2000"] == pytest.approx(200 / 3)
    assert "1 of 3 images, the first 2, have no cell type" in caplog.text


def test_categories_are_called_by_their_names(registered) -> None:
    registered([record(0, [annotation(disc(20, 20, 10), 0), annotation(disc(50, 50, 10), 1)])])
    MetadataCatalog.get(NAME).thing_classes = ["round", "long"]
    results = run(CellCOCOEvaluator(NAME), {0: detected([disc(20, 20, 10)], [0.9], [0])})
    assert (results["segm"]["AP-round"], results["segm"]["AP-long"]) == (pytest.approx(100), 0)


def test_keeps_neither_masks_nor_ious(registered) -> None:
    """What is kept of an image, and sent by each process, is about 24 bytes a detection and task."""
    masks = [disc(5 + 7 * column, 5 + 7 * row, 3) for row in range(11) for column in range(11)]
    registered([record(n, [annotation(mask) for mask in masks]) for n in range(3)])
    evaluator = CellCOCOEvaluator(NAME)
    evaluator.reset()
    sizes = []
    for number in range(3):
        evaluator.process([{"image_id": number}], [{"instances": detected(masks, [0.5] * 121, [0] * 121)}])
        sizes.append(len(pickle.dumps(evaluator._images._results)))
    # An image's 121 x 121 IoUs alone are 117 kB, its masks as text 10 kB.
    assert sizes[2] - sizes[1] < 2 * 121 * 24 + 1000


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
        perfect = {key: 0.0 if key.startswith("AFNR") else 100.0 for key in values}
        assert values == pytest.approx(perfect)
        assert {"AP", "AR100", "AR2000", "APs", "APm"} <= values.keys()


def test_classes_are_told_apart(registered) -> None:
    registered([record(0, [annotation(disc(20, 20, 10), category=0)])])
    wrong = {0: detected([disc(20, 20, 10)], [0.9], [1])}
    assert run(CellCOCOEvaluator(NAME), wrong)["segm"]["AP"] == 0


def test_without_detections_everything_is_zero(registered, caplog: pytest.LogCaptureFixture) -> None:
    registered([record("a", [annotation(disc(20, 20, 8)), annotation(disc(50, 50, 14)), annotation(disc(40, 40, 30))])])
    with caplog.at_level(logging.WARNING):
        results = run(CellCOCOEvaluator(NAME), {"a": detected([], [], [])})
    for task in ("bbox", "segm"):
        assert results[task].pop("AFNR") == 100
        assert set(results[task].values()) == {0.0}
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


def _evaluate_every_second(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    records, predictions = random_scene(5, images=7)
    DatasetCatalog.register(NAME, lambda: records)
    mine = {image_id: found for number, (image_id, found) in enumerate(predictions.items()) if number % 2 == rank}
    evaluator = CellCOCOEvaluator(NAME, output_dir=folder)
    evaluator.reset()
    for image_id, instances in mine.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    Path(folder, f"{rank}.json").write_text(json.dumps(evaluator.evaluate()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_as_good_as_one(registered, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_evaluate_every_second, (str(tmp_path),), nprocs=2)
    records, predictions = random_scene(5, images=7)
    registered(records)
    alone = run(CellCOCOEvaluator(NAME), predictions)
    together = json.loads((tmp_path / "0.json").read_text())
    assert together == {task: pytest.approx(values, nan_ok=True) for task, values in alone.items()}
    assert json.loads((tmp_path / "1.json").read_text()) is None
    written = json.loads((tmp_path / "instances_results.json").read_text())
    assert len(written) == sum(len(instances) for instances in predictions.values())
    assert not list(tmp_path.glob("*.part*")) and not list(tmp_path.glob(".*"))


def test_two_evaluations_at_once_keep_their_files_apart(registered, tmp_path: Path) -> None:
    registered([record(n, [annotation(disc(20, 20, 10))]) for n in range(2)])
    both = [CellCOCOEvaluator(NAME, output_dir=str(tmp_path)) for _ in range(2)]
    for evaluator in both:
        evaluator.reset()
    for image_id in range(2):
        for evaluator, score in zip(both, (0.25, 0.75), strict=True):
            evaluator.process([{"image_id": image_id}], [{"instances": detected([disc(20, 20, 10)], [score], [0])}])
    for evaluator, score in zip(both, (0.25, 0.75), strict=True):
        evaluator.evaluate()
        written = json.loads((tmp_path / "instances_results.json").read_text())
        assert [(one["image_id"], one["score"]) for one in written] == [(0, score), (1, score)]
    assert [path.name for path in tmp_path.iterdir()] == ["instances_results.json"]


def test_an_evaluation_that_ends_early_leaves_no_part(registered, tmp_path: Path) -> None:
    registered([])
    evaluator = CellCOCOEvaluator(NAME, output_dir=str(tmp_path))
    evaluator.reset()
    assert len(list(tmp_path.iterdir())) == 1
    del evaluator
    assert not list(tmp_path.iterdir())


def test_an_empty_results_file(registered, tmp_path: Path) -> None:
    registered([record(0, [annotation(disc(20, 20, 10))])])
    for _ in range(2):
        run(CellCOCOEvaluator(NAME, output_dir=str(tmp_path)), {0: detected([], [], [])})
        assert json.loads((tmp_path / "instances_results.json").read_text()) == []


def test_images_not_evaluated_are_missed_cells_and_said(registered, caplog: pytest.LogCaptureFixture) -> None:
    registered([record(n, [annotation(disc(20, 20, 10))]) for n in range(2)])
    results = run(CellCOCOEvaluator(NAME), {0: detected([disc(20, 20, 10)], [0.9], [0])})
    assert results["segm"]["AR100"] == pytest.approx(50)
    assert "1 of 2 images were not evaluated" in caplog.text


def test_unknown_image(registered) -> None:
    registered([record("a", [annotation(disc(20, 20, 10))])])
    with pytest.raises(DatasetError, match="image_id 'b' is not the data set's; expected ids such as 'a'"):
        run(CellCOCOEvaluator(NAME), {"b": detected([], [], [])})
    with pytest.raises(DatasetError, match="image_id 1 is not"):
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
