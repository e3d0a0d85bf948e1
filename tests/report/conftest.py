"""A finished pipeline as it lies on disk, made by hand: nothing is trained."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 60, 80
DATASET = "report_test"

Box = tuple[int, int, int, int]


def box_rle(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return mask_util.encode(mask)


def annotation(box: Box, iscrowd: int = 0, category: int = 0) -> dict[str, Any]:
    return {
        "bbox": list(box),
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": box_rle(*box),
        "category_id": category,
        "iscrowd": iscrowd,
    }


def result(image_id: Any, box: Box, score: float, category: int = 0) -> dict[str, Any]:
    rle = box_rle(*box)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": segmentation,
    }


# Image 1 is found but for a prediction too many; of image 2 two cells are missed, one of them below a score of 0.7;
# image 3, without predictions, lacks four.
TRUE = {
    1: [(5, 5, 10, 10)],
    2: [(5, 5, 10, 10), (30, 5, 10, 10), (50, 30, 20, 20)],
    3: [(5, 5, 8, 8), (20, 5, 8, 8), (35, 5, 8, 8), (50, 5, 8, 8)],
}
FOUND = [
    (1, (5, 5, 10, 10), 0.9),
    (1, (60, 40, 10, 10), 0.8),
    (2, (5, 6, 10, 10), 0.95),
    (2, (31, 5, 10, 10), 0.3),
    (2, (5, 5, 10, 10), 0.6),
]
NAMES = {1: "good.png", 2: "bad.png", 3: "worst.png"}


@pytest.fixture()
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers images of a few boxes, for one test."""

    def add(name: str, annotations: dict[int, list[dict[str, Any]]], names: dict[int, str], **metadata: Any) -> None:
        records = []
        for image_id, of_image in annotations.items():
            file = tmp_path / names[image_id]
            Image.fromarray(np.random.default_rng(image_id).integers(0, 255, (HEIGHT, WIDTH), np.uint8)).save(file)
            records.append(
                {
                    "file_name": str(file),
                    "image_id": image_id,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "annotations": of_image,
                }
            )
        monkeypatch.setitem(DatasetCatalog.data, name, lambda: records)
        monkeypatch.setitem(MetadataCatalog.data, name, MetadataCatalog.get("none").__class__(name=name, **metadata))

    return add


def write_results(folder: Path, dataset: str, results: list[dict[str, Any]]) -> Path:
    """As ResultsFile writes them."""
    file = folder / "inference" / dataset / "instances_results.json"
    file.parent.mkdir(parents=True)
    file.write_text("[\n" + ",\n".join(json.dumps(one) for one in results) + "\n]\n")
    return file


def write_output(folder: Path, metrics: dict[str, Any], datasets: list[str]) -> Path:
    """A pipeline of a MoCo stage and a detector's, but for the detections."""
    values = [{"iteration": 19 + 20 * i, "total_loss": 5.0 - i, "lr": 0.1} for i in range(4)]
    moco = [{**row, "contrastive_accuracy": 0.5} for row in values]
    for name, rows, config in (("1_moco", moco, "SEED: 1\n"), ("2_finetune", values, "SOLVER:\n  MAX_ITER: 80\n")):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / name / "config.yaml").write_text(config)
    stages = [
        {"name": "moco", "trainer": "MoCoTrainer", "seconds": 61.0, "iterations": 80, "metrics": {}},
        {"name": "finetune", "trainer": "DetectionTrainer", "seconds": 3700.0, "iterations": 80, "metrics": metrics},
    ]
    content = {
        "metrics": metrics,
        "stages": stages,
        "seconds": 3761.0,
        "command": ["tools/train_net.py", "--config-file", "configs/my cells.yaml"],
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "device": "2 CPU threads",
        "config": {
            "DATASETS": {"TEST": datasets},
            "INPUT": {"PERCENTILES": [0.1, 99.9]},
            "TEST": {"CELL_COCO": {"USE_CATS": True}},
        },
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder


METRICS = {
    DATASET: {
        "bbox": {"AP": 41.26, "AP50": 62.0, "APl": None, "AFNR": 33.3, "AP-hela": 12.5},
        "segm": {"AP": 40.04, "AP50": 60.0, "APl": float("nan"), "AFNR": 35.0, "AP-hela": 11.5},
    }
}


@pytest.fixture()
def output(register: Callable[..., None], tmp_path: Path) -> Path:
    register(DATASET, {key: [annotation(box) for box in boxes] for key, boxes in TRUE.items()}, NAMES)
    folder = write_output(tmp_path / "out", METRICS, [DATASET])
    write_results(folder / "2_finetune", DATASET, [result(*one) for one in FOUND])
    return folder


def change(folder: Path, **values: Any) -> None:
    """Of results.json."""
    file = folder / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # The sandbox does not start for root, as whom containers run.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture()
def visit(browser: Any) -> Callable[[Path], AbstractContextManager[Any]]:
    """Opens a file on a phone; whatever the page asks for or complains about until it is left fails the test."""

    @contextmanager
    def visit(path: Path) -> Iterator[Any]:
        heard: list[str] = []
        opened = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="light")
        opened.on("console", lambda message: heard.append(message.text))
        opened.on("pageerror", lambda error: heard.append(str(error)))
        opened.on("request", lambda request: heard.append(request.url))
        opened.goto(path.as_uri())
        yield opened
        opened.close()
        assert [text for text in heard if text != path.as_uri() and not text.startswith("data:image/jpeg")] == []

    return visit
