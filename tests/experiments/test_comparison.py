"""Which images are compared, and that the colours are where they belong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data import get_records, register_cell_dataset
from cupre_d2.experiments import pictures
from cupre_d2.report import detections
from cupre_d2.report.detections import read_images
from cupre_d2.report.matching import match_image
from tests.conftest import write_coco


def results_of(records: list[dict], file: Path, score: float) -> Path:
    """The first cell of each image found, and a false detection in the corner."""
    lines = []
    for record in records:
        height, width = record["height"], record["width"]
        rles = [mask_util.frPyObjects([list(record["annotations"][0]["segmentation"][0])], height, width)[0]]
        corner = np.zeros((height, width), np.uint8, order="F")
        corner[-3:, -3:] = 1
        for rle in [*rles, mask_util.encode(corner)]:
            result = {"image_id": record["image_id"], "category_id": 1, "bbox": mask_util.toBbox(rle).tolist()}
            lines.append({**result, "score": score, "segmentation": {**rle, "counts": rle["counts"].decode()}})
    file.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n")
    return file


@pytest.fixture()
def cells(tmp_path: Path) -> Iterator[str]:
    write_coco(tmp_path / "images", tmp_path / "cells.json", ["a.png", "b.png"], {1: "cell"})
    register_cell_dataset("compared_cells", images=tmp_path / "images", annotations=tmp_path / "cells.json")
    yield "compared_cells"
    DatasetCatalog.remove("compared_cells")
    MetadataCatalog.remove("compared_cells")


def test_images_are_chosen_by_their_number_of_cells() -> None:
    records = [{"image_id": count, "annotations": [None] * count} for count in (9, 3, 0, 100, 5, 7, 2, 4, 8, 6, 1)]
    assert pictures.choose(records) == [2, 5, 9]
    assert pictures.choose(records[:1]) == [9]


def test_a_row_an_arm(cells: str, tmp_path: Path) -> None:
    file = results_of(get_records(cells), tmp_path / "found.json", 0.9)
    chosen = pictures.choose(get_records(cells))
    pictures.compare({"coco": file, "cupre": file}, cells, True, chosen, tmp_path / "arms.png")
    with Image.open(tmp_path / "arms.png") as image:
        assert image.height > 1.5 * image.width / len(chosen)


def test_images_that_are_not_asked_for_are_not_matched(cells: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor kept: with the detections of all images, a large data set would not fit into memory."""
    matched = []

    def match(record: dict, *rest: Any) -> detections.ImageMatch:
        matched.append(record["image_id"])
        return match_image(record, *rest)

    monkeypatch.setattr(detections, "match_image", match)
    records = get_records(cells)
    file = results_of(records, tmp_path / "found.json", 0.9)
    wanted = records[1]["image_id"]
    (image,) = read_images(file, cells, True, [wanted])
    assert matched == [image.record["image_id"]] == [wanted]


@pytest.mark.parametrize(("score", "drawn"), [(0.9, True), (0.4, False)])
def test_colours(score: float, drawn: bool, cells: str, tmp_path: Path) -> None:
    records = get_records(cells)
    file = results_of(records, tmp_path / "found.json", score)
    (image,) = read_images(file, cells, True, [records[0]["image_id"]])
    axes = Figure().add_subplot()
    pictures._show(axes, image)
    canvas = np.asarray(axes.get_images()[0].get_array())
    has = {name: (canvas == getattr(pictures, name)).all(-1).any() for name in ("FOUND", "FALSE", "MISSED")}
    assert has == {"FOUND": drawn, "FALSE": drawn, "MISSED": True}
    found = 1 if drawn else 0
    cells_there = len(records[0]["annotations"])
    assert axes.get_xlabel() == f"{found} found, {found} false, {cells_there - found} missed"
    assert len(axes.texts) == 2 * found
