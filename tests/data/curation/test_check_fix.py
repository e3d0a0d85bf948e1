"""The cleaned copy: no defect that could be repaired is left, and all else is as it was."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.curation.checked_splits import CheckedSplit, splits_of, splits_of_path
from cupre_d2.data.curation.checking import check, check_splits
from cupre_d2.data.curation.cleaning import fix
from cupre_d2.data.curation.findings import exit_code
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.errors import DatasetError

HEIGHT, WIDTH = 60, 80


def cleaned(coco: Any, out: Path) -> tuple[dict[str, Any], list[str]]:
    splits = splits_of_path(coco.write())
    before = {file: file.read_bytes() for file in coco.file.parent.rglob("*") if file.is_file()}
    lines = fix(splits, check_splits(splits), out)
    assert all(file.read_bytes() == content for file, content in before.items())
    load_coco_json(out / "train.json", out / "images")
    return json.loads((out / "train.json").read_text()), lines


def decode(annotation: dict[str, Any]) -> np.ndarray:
    rles = mask_util.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)
    return mask_util.decode(mask_util.merge(rles) if isinstance(rles, list) else rles)


def plant_everything(coco: Any) -> set[int]:
    """Plants what can be repaired; returns the ids of annotations that must be in the copy just as they are."""
    content, annotations = coco.content, coco.content["annotations"]
    untouched = {annotation["id"] for annotation in annotations[12:24]}
    for index, segmentation in enumerate([[], [[1, 2, 3, 4]], {"size": [3, 3], "counts": [9]}, [[1, 2, 3]]]):
        annotations[index]["segmentation"] = segmentation
    annotations[4]["bbox"] = [1, 2]
    annotations[5]["bbox"] = [0, 0, 0, 0]
    annotations[6]["bbox"] = [0, 0, 200, 200]
    annotations[7]["bbox"][2] += 5
    annotations[8]["image_id"] = 99
    annotations[9]["category_id"] = 9
    annotations[10]["id"] = 1
    del annotations[11]["id"]
    coco.add_cell(2, [2, 2, 12, 2, 12, 11, 2, 11])
    coco.add_cell(2, [70, 50, 95, 50, 95, 58, 70, 58])
    annotations[-1]["segmentation"].append([5, 5])
    annotations.append("none")
    image = content["images"][1]
    content["images"] += [
        {**image, "id": 20},
        {**image, "id": 21, "file_name": "gone.png"},
        {**image, "id": 22, "file_name": "broken.png"},
        {**image, "id": 23, "file_name": "copy.tif"},
        {**image, "id": 24, "file_name": "../train.json"},
        {**image, "id": 1, "file_name": "new.png"},
        {"id": 25},
    ]
    (coco.folder / "broken.png").write_bytes((coco.folder / "A172_2.png").read_bytes()[:-300])
    Image.open(coco.folder / "A172_2.png").save(coco.folder / "copy.tif")
    Image.fromarray(np.eye(60, 80, dtype=np.uint8)).save(coco.folder / "new.png")
    content["images"][2]["height"] = 61
    return untouched


def test_everything_at_once(make_set: Any, tmp_path: Path) -> None:
    coco = make_set()
    untouched = plant_everything(coco)
    original = {annotation["id"]: annotation for annotation in coco.content["annotations"][12:-1]}
    content, lines = cleaned(coco, tmp_path / "out")
    left = check_splits(splits_of_path(tmp_path / "out"))
    assert {finding.kind for finding in left} == {"no cell"} and exit_code(left) == 0
    assert [image["file_name"] for image in content["images"]] == ["A172_1.png", "A172_2.png", "A172_3.png", "new.png"]
    assert content["images"][2]["height"] == HEIGHT and content["info"] == {"year": 2021}
    assert sorted(file.name for file in (tmp_path / "out/images").iterdir()) == [
        "A172_1.png",
        "A172_2.png",
        "A172_3.png",
        "new.png",
    ]
    by_id = {annotation["id"]: annotation for annotation in content["annotations"]}
    assert len(by_id) == len(content["annotations"]) == 12 - 6 + 24 + 1
    assert all(by_id[number] == original[number] for number in untouched)
    for number in (5, 6, 7, 8):
        x, y = 2 + 19 * ((number - 1) % 4), 2 + 18 * ((number - 1) // 4)
        assert by_id[number]["bbox"] == [x, y, 10, 10]
    text = "\n".join(lines)
    for said in (
        "image 20 (A172_2.png) with 0 annotations: image left out (repeated file)",
        "image 21 (gone.png) with 0 annotations: image left out (missing image)",
        "image 22 (broken.png) with 0 annotations: image left out (unreadable image)",
        "image 23 (copy.tif) with 0 annotations: image left out (repeated content)",
        "image left out (file outside the folder)",
        "image 3 (A172_3.png): height and width set to those of the file",
        "image 1 (new.png): given an id of its own",
        "annotation 1: dropped (empty mask)",
        "annotation 9: dropped (unknown image id)",
        "annotation 10: dropped (unknown category id)",
        "annotation 37: dropped (double contour)",
        "annotation 38: polygons cut to what is in the image, box computed from the mask",
        "       2 train: dropped (malformed mask)",
        "       4 train: box computed from the mask",
    ):
        assert said in text, said


def test_polygons_are_cut_to_the_pixel(make_set: Any, tmp_path: Path) -> None:
    coco = make_set(cells=0)
    shapes = [
        [-9, 20, 11, 20, 11, 28, -9, 28],
        [-9, 5, 5, -9, 30, 30],
        [70, 50, 95, 45, 90, 70, 60, 66],
        [40, -20, 50, 90, 60, -20, 45, 90],
        [-30, -30, 120, -30, 120, 100, -30, 100],
    ]
    masks = []
    for image, shape in zip((1, 1, 1, 2, 3), shapes, strict=True):
        masks.append(decode(coco.add_cell(image, shape)))
    content, _ = cleaned(coco, tmp_path / "out")
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        points = np.reshape(annotation["segmentation"][0], (-1, 2))
        assert points.min() >= 0 and (points <= [WIDTH, HEIGHT]).all()
        # pycocotools rounds the points it is given, and the new ones lie between the old: edges may move by a pixel.
        edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        difference = decode(annotation) != mask
        assert not (difference & ~edge).any() and difference.sum() <= 0.08 * mask.sum()
        assert annotation["area"] == decode(annotation).sum()
    assert exit_code(check_splits(splits_of_path(tmp_path / "out"))) < 2


def test_leaks_leave_the_training_side(make_set: Any, tmp_path: Path) -> None:
    train, val, test = make_set("train"), make_set("val", first=3), make_set("test", first=5)
    for coco in (train, val, test):
        coco.write()
    splits = splits_of_path(tmp_path)
    findings = check_splits(splits)
    lines = fix(splits, findings, tmp_path / "out")
    files = {
        name: [image["file_name"] for image in json.loads((tmp_path / f"out/{name}.json").read_text())["images"]]
        for name in ("train", "val", "test")
    }
    assert files == {
        "train": ["A172_1.png", "A172_2.png"],
        "val": ["A172_3.png", "A172_4.png", "A172_5.png"],
        "test": ["A172_5.png", "A172_6.png", "A172_7.png"],
    }
    assert "       1 train: image left out (leak)" in lines and "       1 val: left as it is (leak)" in lines
    left = check_splits(splits_of_path(tmp_path / "out"))
    assert [(finding.kind, finding.split) for finding in left] == [("leak", "val")]


def test_category_ids_off_by_one(make_set: Any, tmp_path: Path) -> None:
    coco = make_set()
    for index, annotation in enumerate(coco.content["annotations"]):
        annotation["category_id"] = index % 2
    coco.content["categories"].append({"id": 2, "name": "nucleus"})
    coco.content["images"].append({**coco.content["images"][0], "id": 9, "file_name": "gone.png"})
    content, _ = cleaned(coco, tmp_path / "out")
    assert [annotation["category_id"] for annotation in content["annotations"]] == [1, 2] * 18


def test_a_clean_set_is_copied_as_it_is(make_set: Any, tmp_path: Path) -> None:
    coco = make_set()
    content, lines = cleaned(coco, tmp_path / "out")
    assert content == coco.content and lines == []
    for file in coco.folder.iterdir():
        assert (tmp_path / "out/images" / file.name).read_bytes() == file.read_bytes()


def test_label_images_become_coco(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[2:20, 3:9], labels[30:40, 50:60], labels[34:36, 54:56] = 1, 9, 0
    for index in (1, 1, 2):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"set/images/{index}.png")
        tifffile.imwrite(tmp_path / f"set/labels/{index}.tif", labels)
    Image.open(tmp_path / "set/images/2.png").save(tmp_path / "set/images/3.png")
    tifffile.imwrite(tmp_path / "set/labels/3.tif", np.minimum(labels, 1))
    splits = splits_of_path(tmp_path / "set")
    fix(splits, check_splits(splits), tmp_path / "out")
    records, categories = load_coco_json(tmp_path / "out/set.json", tmp_path / "out/images")
    assert categories == {1: "cell"} and [Path(record["file_name"]).name for record in records] == ["1.png", "2.png"]
    for record in records:
        masks = [mask_util.decode(annotation["segmentation"]) for annotation in record["annotations"]]
        for mask, value in zip(masks, (1, 9), strict=True):
            np.testing.assert_array_equal(mask, labels == value)
    assert check_splits(splits_of_path(tmp_path / "out")) == []


def test_folder_of_images(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), index // 2, np.uint8)).save(tmp_path / f"set/{index}.png")
    (tmp_path / "set/3.png").write_bytes(b"")
    splits = splits_of_path(tmp_path / "set")
    lines = fix(splits, check_splits(splits), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out/set").iterdir()) == ["0.png", "2.png"] and len(lines) == 4
    assert check_splits(splits_of_path(tmp_path / "out/set")) == []


def test_two_files_of_one_name(tmp_path: Path) -> None:
    splits = []
    for index, name in enumerate(("train", "val")):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((9, 9), index, np.uint8)).save(tmp_path / name / "a.png")
        content = {"images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}], "annotations": []}
        (tmp_path / name / f"{name}.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cell"}]}))
        splits += splits_of_path(tmp_path / name / f"{name}.json")
    fix(splits, check_splits(splits), tmp_path / "out")
    for index, name in enumerate(("train", "val")):
        (record,), _ = load_coco_json(tmp_path / f"out/{name}.json", tmp_path / "out/images")
        assert np.asarray(Image.open(record["file_name"])).max() == index


def test_refusals(make_set: Any, tmp_path: Path) -> None:
    splits = splits_of_path(make_set().write())
    with pytest.raises(DatasetError, match="images: expected a new or an empty folder"):
        fix(splits, [], tmp_path / "images")
    with pytest.raises(DatasetError, match="train.json/out: cannot be written"):
        fix(splits, [], tmp_path / "train.json" / "out")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 9, 9), np.uint8), photometric="minisblack")
    record = {"file_name": str(tmp_path / "a.tif"), "image_id": "a", "height": 9, "width": 9, "page": 1, "annotations": []}
    split = CheckedSplit("stack", "all", lambda: [record], None, tmp_path)
    with pytest.raises(DatasetError, match=r"a.tif: image a \(page 1\): a page of a stack; expected one image a file"):
        fix([split], [], tmp_path / "out")
    del record["page"]
    record["channels"] = (0,)
    with pytest.raises(DatasetError, match=r"a.tif: image a: some channels; expected one image a file"):
        fix([split], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_pixels_are_read_and_cell_types(make_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    coco = make_set()
    (coco.file.parent / "livecell/annotations/LIVECell").mkdir(parents=True)
    (tmp_path / "livecell/images").mkdir()
    coco.folder.rename(tmp_path / "livecell/images/livecell_train_val_images")
    coco.write().rename(tmp_path / "livecell/annotations/LIVECell/livecell_coco_train.json")
    raw = splits_of("livecell")
    of_records = [CheckedSplit("b", "train", lambda: get_records("livecell_train"), None, tmp_path)]
    for name, splits in (("livecell_train", raw), ("b", of_records)):
        assert "register it with normalize=False" in fix(splits, [], tmp_path / name)[-1]
        images = json.loads((tmp_path / f"{name}/{name}.json").read_text())["images"]
        assert [image["cell_type"] for image in images] == ["a172"] * 3


def test_nothing_to_write(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("[]")
    splits = splits_of_path(tmp_path / "set.json")
    assert fix(splits, check_splits(splits), tmp_path / "out") == [
        "       1 set: left as it is (unusable file)",
        "set: nothing written, as no image or no category of it can be used",
    ]


def test_a_full_folder_is_noticed_before_the_check(make_set: Any, capsys: pytest.CaptureFixture[str]) -> None:
    coco = make_set()
    with pytest.raises(DatasetError, match="images: expected a new or an empty folder"):
        check(str(coco.write()), None, coco.folder)
    assert capsys.readouterr().out == ""


def test_command(make_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = make_set()
    coco.content["annotations"][0]["bbox"] = [1, 2]
    assert check(str(coco.write()), None, tmp_path / "out") == 2
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("error: malformed box: ") and printed[1] == "       1 error: malformed box"
    assert printed[-1] == "       1 train: box computed from the mask"
    assert check(str(tmp_path / "out/train.json")) == 0
    assert capsys.readouterr().out == "nothing found\n"
    assert check(str(tmp_path / "out/train.json"), images=tmp_path / "images") == 0
    with pytest.raises(DatasetError, match="neither: no such file or folder, nor a data set; expected a path or one of"):
        check("neither")
