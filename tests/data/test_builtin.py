"""The built-in names, on made-up files in their publishers' layouts, and on the real ones where they are at hand."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cupre_d2.data.builtin import bbbc, register_builtin_datasets
from cupre_d2.data.builtin.bbbc import appearance, bbbc038_ids, load_bbbc038_images
from cupre_d2.data.builtin.livecell import TYPES as LIVECELL_TYPES
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.formats.csv_tables import read_rows
from cupre_d2.data.images import read_image
from cupre_d2.errors import DatasetError

REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
SIZE = 8
# Of id0 ... id19, from `sorted(ids, key=sha256)`.
EXPECTED_VAL_TEST = (["id0", "id19"], ["id16", "id7"])


def save_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(file)


def write_livecell(root: Path, split: str, names: list[str], nested: bool = False) -> None:
    folder = "livecell_test_images" if split == "test" else "livecell_train_val_images"
    for name in names:
        save_image(root / "livecell/images" / folder / (name.split("_")[0] if nested else "") / name)
    content = {
        "images": [{"id": i, "file_name": n, "height": SIZE, "width": SIZE} for i, n in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]}
            for i in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    file = root / f"livecell/annotations/LIVECell/livecell_coco_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_bbbc038(root: Path, count: int) -> None:
    for index in range(count):
        folder = root / f"bbbc038/stage1_train/id{index}"
        save_image(folder / f"images/id{index}.png")
        save_image(folder / "masks/0.png")


@pytest.fixture()
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set after import: names must read the variable when they are used."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


TRAIN = ["A172_Phase_1.tif", "BV2_Phase_1.tif", "SkBr3_Phase_1.tif", "a172_Phase_2.tif"]


def stems(name: str) -> list[str]:
    return [Path(record["file_name"]).name for record in get_records(name)]


@pytest.mark.parametrize("nested", [False, True])
def test_livecell(root: Path, nested: bool) -> None:
    write_livecell(root, "train", TRAIN, nested)
    write_livecell(root, "test", ["MCF7_Phase_9.tif"], nested)
    records = get_records("livecell_train")
    assert [record["cell_type"] for record in records] == ["a172", "bv2", "skbr3", "a172"]
    assert all(Path(record["file_name"]).is_file() and len(record["annotations"]) == 1 for record in records)
    assert stems("livecell_a172_train") == ["A172_Phase_1.tif", "a172_Phase_2.tif"]
    assert stems("livecell_test") == stems("livecell_mcf7_test") == ["MCF7_Phase_9.tif"]
    assert MetadataCatalog.get("livecell_a172_train").thing_classes == ["cell"]
    with pytest.raises(DatasetError, match="livecell_coco_train.json: no image of cell type huh7"):
        get_records("livecell_huh7_train")


def test_livecell_of_other_classes(root: Path) -> None:
    write_livecell(root, "train", TRAIN)
    file = root / "livecell/annotations/LIVECell/livecell_coco_train.json"
    file.write_text(file.read_text().replace('"name": "cell"', '"name": "a172"'))
    with pytest.raises(DatasetError, match=r"livecell_coco_train.json: field categories: \['a172'\].*expected \['cell'\]"):
        get_records("livecell_train")


def test_every_name_is_registered_once() -> None:
    register_builtin_datasets()
    for split in ("train", "val", "test"):
        for name in ("livecell", "bbbc038", *(f"livecell_{cell_type}" for cell_type in LIVECELL_TYPES)):
            assert f"{name}_{split}" in DatasetCatalog
            assert MetadataCatalog.get(f"{name}_{split}").evaluator_type == "cell_coco"
    assert {"livecell_unlabeled", "cells_unlabeled", "coco_2017_train", "coco_2017_val"} <= set(DatasetCatalog.list())


def test_livecell_unlabeled_and_unknown_types(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("SKOV3_Phase_1.tif", "Odd_Phase_1.tif"):
        save_image(root / "livecell/images/unlabeled" / name)
    with caplog.at_level(logging.WARNING):
        odd, known = get_records("livecell_unlabeled")
    assert known["cell_type"] == "skov3" and "cell_type" not in odd and "annotations" not in known
    assert "no known cell type in the name of 1 images" in caplog.text


def test_bbbc038_split(root: Path) -> None:
    write_bbbc038(root, 20)
    parts = {split: [record["image_id"] for record in get_records(f"bbbc038_{split}")] for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 16, "val": 2, "test": 2}
    assert sorted(i for part in parts.values() for i in part) == sorted(f"id{i}" for i in range(20))
    assert (sorted(parts["val"]), sorted(parts["test"])) == EXPECTED_VAL_TEST
    (annotation,) = get_records("bbbc038_val")[0]["annotations"]
    assert annotation["bbox"] == [0, 0, SIZE, SIZE]


def test_bbbc038_split_of_the_whole_set_is_the_paper_s(root: Path) -> None:
    for index in range(670):
        (root / f"bbbc038/stage1_train/{index:064x}/images").mkdir(parents=True)

    assert [len(bbbc038_ids(root, split)) for split in ("train", "val", "test")] == [536, 67, 67]


def test_bbbc038_records_are_the_caller_s_own(root: Path) -> None:
    write_bbbc038(root, 10)
    get_records("bbbc038_val")[0]["annotations"].clear()
    assert len(get_records("bbbc038_val")[0]["annotations"]) == 1


def test_bbbc038_types(root: Path) -> None:
    write_bbbc038(root, 10)
    (root / "bbbc038/types.csv").write_text("image_id,type\n" + "".join(f"id{i},kind {i % 2}\n" for i in range(10)))
    for record in get_records("bbbc038_train"):
        assert record["cell_type"] == f"kind {int(record['image_id'][2:]) % 2}"


def test_bbbc038_types_without_rows_or_columns(root: Path) -> None:
    write_bbbc038(root, 10)
    (root / "bbbc038/types.csv").write_text("id;kind\n")
    with pytest.raises(DatasetError, match="types.csv.*expected image_id, type"):
        get_records("bbbc038_train")
    (root / "bbbc038/types.csv").write_text("image_id,type\n")
    assert not any("cell_type" in record for record in get_records("bbbc038_train"))


def test_bbbc038_types_as_excel_writes_them(root: Path) -> None:
    write_bbbc038(root, 10)
    rows = "".join(f"id{i},kind\r\n" for i in range(10))
    (root / "bbbc038/types.csv").write_text("image_id,type\r\n" + rows, encoding="utf-8-sig")
    assert {record.get("cell_type") for record in get_records("bbbc038_train")} == {"kind"}


def test_bbbc038_types_of_no_image(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bbbc038(root, 10)
    (root / "bbbc038/types.csv").write_text("image_id,type\nid0.png,kind\n")
    with caplog.at_level(logging.WARNING):
        get_records("bbbc038_train")
    assert "types.csv: no type for 8 of 8 images" in caplog.text


def test_bbbc038_too_few_images(root: Path) -> None:
    write_bbbc038(root, 2)
    with pytest.raises(DatasetError, match="2 images, too few for a val split"):
        get_records("bbbc038_val")


def test_cells_unlabeled(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_livecell(root, "train", [*TRAIN, TRAIN[0]])
    write_livecell(root, "val", [TRAIN[1], "MCF7_Phase_1.tif"])
    write_bbbc038(root, 20)
    held_out = {r["file_name"] for name in ("livecell_val", "bbbc038_val", "bbbc038_test") for r in get_records(name)}
    with caplog.at_level(logging.INFO):
        records = get_records("cells_unlabeled")
    files = [record["file_name"] for record in records]
    assert len(files) == len(set(files)) == 3 + 16
    assert not held_out & set(files)
    assert not any("annotations" in record for record in records)
    assert "goes without livecell_unlabeled" in caplog.text
    assert "left out 1 repeated entries and 1 images of livecell_val" in caplog.text


def test_cells_unlabeled_reads_no_mask(root: Path) -> None:
    write_bbbc038(root, 10)
    for mask in root.glob("bbbc038/stage1_train/*/masks/0.png"):
        mask.write_bytes(b"no image")
    assert len(get_records("cells_unlabeled")) == 8


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("livecell_train", "livecell/annotations/LIVECell/livecell_coco_train.json"),
        ("livecell_bv2_test_5pct", "livecell/annotations/LIVECell/livecell_coco_test.json"),
        ("livecell_unlabeled", "livecell/images/unlabeled"),
        ("bbbc038_val", "bbbc038/stage1_train"),
        ("cells_unlabeled", "bbbc038/stage1_train"),
    ],
)
def test_missing_dataset(root: Path, name: str, path: str) -> None:
    with pytest.raises(DatasetError) as error:
        get_records(name)
    for part in (
        f"DETECTRON2_DATASETS is {str(root)!r}",
        str(root / path),
        "datasets/README.md",
        name.removesuffix("_5pct"),
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_dataset_without_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="DETECTRON2_DATASETS is not set.*datasets/README.md") as error:
        get_records("bbbc038_train")
    assert str(tmp_path / "datasets/bbbc038/stage1_train") in str(error.value)
    assert f"there is no {tmp_path / 'datasets'};" in str(error.value)


def test_missing_coco(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = MetadataCatalog.get("coco_2017_val").__dict__
    json_file = root / "coco/annotations/instances_val2017.json"
    monkeypatch.setitem(metadata, "json_file", str(json_file))
    monkeypatch.setitem(metadata, "image_root", str(root / "coco/val2017"))
    for name in ("coco_2017_val", "coco_2017_val_5pct"):
        with pytest.raises(DatasetError, match="coco_2017_val.*instances_val2017.json.*DETECTRON2_DATASETS.*README.md"):
            get_records(name)
    json_file.parent.mkdir(parents=True)
    json_file.write_text("{}")
    with pytest.raises(DatasetError, match="expected .*coco/val2017"):
        get_records("coco_2017_val")


@pytest.mark.real_data
@pytest.mark.skipif("DETECTRON2_DATASETS" not in os.environ, reason="DETECTRON2_DATASETS is not set")
@pytest.mark.parametrize(
    ("names", "images", "instances"),
    [
        (["coco_2017_train"], 500, 4275),
        (["coco_2017_val"], 49, 485),
        (["livecell_train"], 10, 2066),
        (["livecell_val"], 5, 1243),
        (["livecell_unlabeled"], 47, 0),
        (["cells_unlabeled"], 10 + 47 + 478 + 25 + 15 + 8, 0),
        (["bbbc038_train", "bbbc038_val", "bbbc038_test"], 597, 25732),
    ],
)
def test_real_data(names: list[str], images: int, instances: int) -> None:
    records = [record for name in names for record in get_records(name)]
    assert len({record["file_name"] for record in records}) == len(records) == images
    assert sum(len(record.get("annotations", ())) for record in records) == instances


def write_types(root: Path, types: dict[str, str]) -> None:
    rows = "".join(f"{image_id},{kind}\n" for image_id, kind in types.items())
    (root / "bbbc038/types.csv").write_text("image_id,type\n" + rows)


def test_bbbc038_known_and_unknown_types(root: Path) -> None:
    write_bbbc038(root, 20)
    kinds = {f"id{i}": "rare" if i < 4 else "common" for i in range(19)}
    write_types(root, kinds)
    known = [r["image_id"] for split in ("train", "val", "test") for r in get_records(f"bbbc038_known_{split}")]
    assert sorted(known) == sorted(f"id{i}" for i in range(4, 19))
    assert {r["image_id"] for r in get_records("bbbc038_known_test")} <= {r["image_id"] for r in get_records("bbbc038_test")}
    unknown = get_records("bbbc038_unknown")
    assert {r["image_id"]: r["cell_type"] for r in unknown} == {f"id{i}": "rare" for i in range(4)}
    assert all(len(record["annotations"]) == 1 for record in unknown)
    unknown[0]["annotations"].clear()
    assert all(record["annotations"] for record in get_records("bbbc038_unknown"))


def test_bbbc038_types_of_images_that_are_missing(root: Path) -> None:
    write_bbbc038(root, 20)
    write_types(root, {"id1": "a", "id2": "b", "id20": "a", "id77": "b"})
    with pytest.raises(DatasetError, match=r"types.csv: 2 of 4 images are not in .*stage1_train, the first id20; expected"):
        get_records("bbbc038_unknown")
    write_types(root, {})
    with pytest.raises(DatasetError, match=r"no image is in bbbc038_types.csv; expected a list of your own, .*types.csv"):
        get_records("bbbc038_known_train")


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "bbbc038/stage1_train").is_dir(), reason="no BBBC038")
def test_our_list_of_bbbc038_types_is_what_the_images_look_like() -> None:
    rows = read_rows(Path(bbbc.__file__).with_name("bbbc038_types.csv"), ("image_id", "type"))
    types = {fields["image_id"]: fields["type"] for _, fields in rows}
    records = load_bbbc038_images(REAL, "val")
    looks = {record["image_id"]: appearance(read_image(record["file_name"])) for record in records}
    assert looks == {image_id: types[image_id] for image_id in looks} and len(set(looks.values())) > 2
