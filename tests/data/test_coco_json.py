"""COCO's instances JSON: what is read, what is left out, and the one line that says what is wrong with bad input."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.errors import DatasetError

HEIGHT, WIDTH = 12, 20
TRIANGLE = [1.0, 1.0, 5.0, 1.0, 5.0, 7.0]


def save_image(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(file)
    return file


def one_line(error: pytest.ExceptionInfo[DatasetError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def annotation(**fields: Any) -> dict[str, Any]:
    base = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1.0, 1.0, 4.0, 6.0], "segmentation": [TRIANGLE]}
    return {**base, **fields}


def listed(annotation: dict[str, Any]) -> dict[str, Any]:
    """With lists where a polygon is an array."""
    return annotation | {"segmentation": [polygon.tolist() for polygon in annotation["segmentation"]]}


def write_coco(folder: Path, annotations: list[dict[str, Any]], /, **fields: Any) -> Path:
    """A COCO file of two images and two categories whose ids are neither ordered nor contiguous."""
    for name in ("a.png", "b.png"):
        save_image(folder / name)
    images = [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in ((1, "a.png"), (2, "b.png"))]
    categories = [{"id": 9, "name": "late"}, {"id": 3, "name": "early"}]
    content = {"images": images, "annotations": annotations, "categories": categories, **fields}
    json_file = folder / "coco.json"
    json_file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return json_file


def test_coco_keeps_polygons_and_sorts_categories(tmp_path: Path) -> None:
    json_file = write_coco(tmp_path, [annotation(), annotation(category_id=9, iscrowd=1)])
    records, categories = load_coco_json(json_file, tmp_path)
    assert categories == {3: "early", 9: "late"}
    first, second = records
    assert first["file_name"] == str(tmp_path / "a.png")
    assert (first["image_id"], first["height"], first["width"]) == (1, HEIGHT, WIDTH)
    assert [listed(one) for one in first["annotations"]] == [
        {
            "bbox": [1.0, 1.0, 4.0, 6.0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": [TRIANGLE],
            "category_id": category,
            "iscrowd": category,
        }
        for category in (0, 1)
    ]
    assert second["annotations"] == []


def test_coco_compresses_run_lengths(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:5, 3:9] = 1
    runs = [3 * HEIGHT + 2, *[3, HEIGHT - 3] * 6]
    runs[-1] = HEIGHT * WIDTH - sum(runs[:-1])
    compressed = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
    size = [HEIGHT, WIDTH]
    both = [annotation(segmentation={"size": size, "counts": counts}, bbox=None) for counts in (runs, compressed)]
    records, _ = load_coco_json(write_coco(tmp_path, both), tmp_path)
    for instance in records[0]["annotations"]:
        np.testing.assert_array_equal(mask_util.decode(instance["segmentation"]), mask)
        assert instance["bbox"] == [3, 2, 6, 3]
        json.dumps(instance)


def test_coco_computes_the_box_of_polygons(tmp_path: Path) -> None:
    polygons = [TRIANGLE, [8, 2, 9, 2, 9, 10]]
    records, _ = load_coco_json(write_coco(tmp_path, [annotation(bbox=None, segmentation=polygons)]), tmp_path)
    assert records[0]["annotations"][0]["bbox"] == [1, 1, 8, 9]


def test_coco_counts_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    annotations = [
        annotation(segmentation=[[1, 1, 2, 2]]),
        annotation(segmentation=[]),
        annotation(segmentation=empty),
        annotation(bbox=[1, 1, 0, 6]),
        annotation(segmentation=[TRIANGLE, [1, 1, 2, 2]]),
        annotation(),
    ]
    with caplog.at_level(logging.WARNING):
        json_file = write_coco(tmp_path, [{**one, "id": number} for number, one in enumerate(annotations)])
        records, _ = load_coco_json(json_file, tmp_path)
    assert [listed(instance)["segmentation"] for instance in records[0]["annotations"]] == [[TRIANGLE], [TRIANGLE]]
    (message,) = caplog.messages
    for part in (
        "1 annotations with only degenerate polygons",
        "1 annotations without a mask",
        "1 annotations with an empty mask",
        "1 annotations with a box without area",
        "1 degenerate parts",
        "of 6 annotations",
    ):
        assert part in message


IMAGE = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}


@pytest.mark.parametrize(
    ("annotations", "fields", "said"),
    [
        ([], {"images": []}, ["field images", "at least one image"]),
        ([], {"images": None}, ["field images", "list"]),
        ([], {"images": [{**IMAGE, "width": 0}]}, ["image 1", "width"]),
        ([], {"images": [{**IMAGE, "height": None}]}, ["image 1", "field height"]),
        ([], {"images": [{"id": 1, "height": 3, "width": 3}]}, ["image 1", "field file_name", "missing"]),
        ([], {"images": [IMAGE, IMAGE]}, ["image 1", "field id", "twice"]),
        ([], {"images": [IMAGE, {**IMAGE, "id": 5, "file_name": "gone.png"}]}, ["image 5", "gone.png", "1 of 2"]),
        ([], {"categories": []}, ["field categories"]),
        ([], {"categories": [{"id": 1}]}, ["category 1", "field name"]),
        ([], {"annotations": {"1": annotation()}}, ["field annotations", "list"]),
        ([annotation(image_id=77)], {}, ["annotation 7", "field image_id", "77"]),
        ([annotation(category_id=1)], {}, ["annotation 7", "field category_id", "1", "3, 9"]),
        ([annotation(bbox=[1, 2, 3])], {}, ["annotation 7", "field bbox"]),
        ([annotation(bbox=[1, 2, 3, float("nan")])], {}, ["annotation 7", "field bbox"]),
        ([annotation(iscrowd="no")], {}, ["annotation 7", "field iscrowd"]),
        ([annotation(segmentation=TRIANGLE)], {}, ["annotation 7", "field segmentation"]),
        ([annotation(segmentation=[[*TRIANGLE, None, 1]])], {}, ["annotation 7", "field segmentation"]),
        (
            [annotation(segmentation={"size": [3, 3], "counts": "a"})],
            {},
            ["annotation 7", "size", f"[{HEIGHT}, {WIDTH}]"],
        ),
        ([annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [5]})], {}, ["annotation 7", "counts", "240"]),
    ],
)
def test_coco_errors_name_file_record_and_field(
    tmp_path: Path, annotations: list[dict[str, Any]], fields: dict[str, Any], said: list[str]
) -> None:
    json_file = write_coco(tmp_path, annotations, **fields)
    with pytest.raises(DatasetError) as error:
        load_coco_json(json_file, tmp_path)
    text = one_line(error)
    for part in (str(json_file), *said):
        assert part in text


@pytest.mark.parametrize(("content", "said"), [("{", "is no JSON"), ("[1]", "expected an object"), ("", "is no JSON")])
def test_coco_file_that_is_no_coco_json(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(DatasetError, match=said) as error:
        load_coco_json(tmp_path / "coco.json", tmp_path)
    assert "coco.json" in one_line(error)


def test_coco_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none.json: no such file"):
        load_coco_json(tmp_path / "none.json", tmp_path)
    with pytest.raises(DatasetError, match="gone: no such folder"):
        load_coco_json(write_coco(tmp_path, []), tmp_path / "gone")
