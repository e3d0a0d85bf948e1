"""Registering a data set of one's own."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cupre_d2.data.catalog import check_images, check_same_classes, register_cell_dataset, register_records
from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import DatasetError


@pytest.fixture()
def name() -> str:
    return f"mine_{uuid4().hex}"


@pytest.fixture()
def images(tmp_path: Path) -> Path:
    for stem in ("a", "b"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / "images" / f"{stem}.png")
    return tmp_path / "images"


def write_json(file: Path, categories: list[str]) -> Path:
    content: dict[str, Any] = {
        "images": [{"id": 4, "file_name": "b.png", "height": 8, "width": 10}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 12, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4]]}
        ],
        "categories": [{"id": 10 + 2 * i, "name": category} for i, category in enumerate(categories)],
    }
    file.write_text(json.dumps(content))
    return file


def test_unlabeled_folder(name: str, images: Path) -> None:
    register_cell_dataset(name, images=images)
    records = get_records(name)
    assert [record["image_id"] for record in records] == ["a.png", "b.png"]
    assert not any("annotations" in record for record in records)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cell"]
    assert metadata.evaluator_type == "cell_coco"
    assert metadata.image_root == str(images)


def test_label_images(name: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.eye(8, 10, dtype=np.uint8)).save(tmp_path / "labels/a.png")
    register_cell_dataset(name, images=str(images), labels=tmp_path / "labels", classes=["nucleus"])
    (record,) = get_records(name)
    assert record["image_id"] == "a" and len(record["annotations"]) == 1
    assert MetadataCatalog.get(name).thing_classes == ["nucleus"]


def test_run_lengths_are_of_one_class(name: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,annotation\na,1 3\na,11 2\n")
    register_cell_dataset(name, images=images, annotations=tmp_path / "train.csv")
    assert MetadataCatalog.get(name).thing_classes == ["cell"]
    assert [len(record["annotations"]) for record in get_records(f"{name}_100pct")] == [2]
    assert MetadataCatalog.get(f"{name}_100pct").thing_classes == ["cell"]
    with pytest.raises(DatasetError, match=r"classes \['a', 'b'\]; expected one, as annotations in a CSV cannot"):
        register_cell_dataset(f"{name}_2", images=images, annotations="train.csv", classes=("a", "b"))


def test_coco_json_brings_its_classes(name: str, images: Path, tmp_path: Path) -> None:
    json_file = write_json(tmp_path / "c.json", ["round", "flat"])
    register_cell_dataset(name, images=images, annotations=json_file)
    assert get_records(f"{name}_50pct")[0]["annotations"][0]["category_id"] == 1
    for known in (name, f"{name}_50pct"):
        assert MetadataCatalog.get(known).thing_classes == ["round", "flat"]
        assert MetadataCatalog.get(known).thing_dataset_id_to_contiguous_id == {10: 0, 12: 1}
    assert MetadataCatalog.get(name).json_file == str(json_file)


def test_coco_json_of_other_classes(name: str, images: Path, tmp_path: Path) -> None:
    json_file = write_json(tmp_path / "c.json", ["round", "flat"])
    register_cell_dataset(name, images=images, annotations=json_file, classes=("flat", "round"))
    with pytest.raises(DatasetError, match=r"c.json: field categories: \['round', 'flat'\].*\['flat', 'round'\]"):
        get_records(name)


def test_nothing_is_read_when_registering(name: str, tmp_path: Path) -> None:
    register_cell_dataset(name, images=tmp_path / "later")
    with pytest.raises(DatasetError, match="later: no such folder"):
        get_records(name)
    (tmp_path / "later").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "later/x.png")
    assert len(get_records(name)) == 1


def test_registering_twice(name: str, images: Path, tmp_path: Path) -> None:
    register_cell_dataset(name, images=images)
    register_cell_dataset(name, images=str(images), classes=("cell",))
    with pytest.raises(DatasetError, match=f"{name}.*registered already"):
        register_cell_dataset(name, images=tmp_path)
    assert len(get_records(name)) == 2
    with pytest.raises(DatasetError, match="registered already"):
        register_cell_dataset("coco_2017_train", images=images)
    with pytest.raises(DatasetError, match="registered already"):
        register_cell_dataset("livecell_train", images=images)


def test_arguments_that_contradict(name: str, images: Path) -> None:
    with pytest.raises(DatasetError, match="at most one"):
        register_cell_dataset(name, images=images, annotations="a.json", labels="labels")
    with pytest.raises(DatasetError, match="expected one"):
        register_cell_dataset(name, images=images, labels="labels", classes=("a", "b"))
    assert name not in DatasetCatalog


def test_register_records(name: str) -> None:
    register_records(name, lambda: [{"image_id": 1}], classes=("disc", "square"), origin="made")
    assert get_records(name) == [{"image_id": 1}]
    assert MetadataCatalog.get(name).thing_classes == ["disc", "square"]
    assert MetadataCatalog.get(name).origin == "made"


def test_same_classes(name: str) -> None:
    for suffix, classes in {"a": ("x", "y"), "b": ("y", "x"), "c": ("x", "y"), "d": ("cell",), "e": ("nucleus",)}.items():
        register_records(name + suffix, list, classes)
    for same in ((), ("a",), ("a", "c"), ("d", "e")):
        check_same_classes([name + suffix for suffix in same])
    with pytest.raises(DatasetError, match=rf"'{name}b': classes \['y', 'x'\]; expected \['x', 'y'\] .* '{name}a'"):
        check_same_classes([name + suffix for suffix in ("a", "c", "b")])
    with pytest.raises(DatasetError, match=rf"'{name}d': classes \['cell'\]"):
        check_same_classes([f"{name}a", f"{name}d"])


def record(file: Path, height: int = 8, width: int = 10) -> dict[str, Any]:
    return {"file_name": str(file), "image_id": file.stem, "height": height, "width": width}


def test_check_images(images: Path) -> None:
    check_images([record(images / "a.png"), record(images / "b.png")], "mine")
    with pytest.raises(DatasetError, match=r"'mine'.*image b.*b.png is 10x8.*8x10"):
        check_images([record(images / "a.png"), record(images / "b.png", 10, 8)], "mine")
    with pytest.raises(DatasetError, match=r"'mine'.*gone.png: no such image"):
        check_images([record(images / "gone.png")], "mine")
    (images / "b.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DatasetError, match=r"'mine'.*b.png: cannot be read"):
        check_images([record(images / "a.png"), record(images / "b.png")], "mine")
