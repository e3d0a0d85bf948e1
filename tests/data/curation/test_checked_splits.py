"""What is checked for a path or a name, what is printed, and how long it takes."""

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pytest
from PIL import Image

from cupre_d2.data.catalog import register_cell_dataset
from cupre_d2.data.curation.checked_splits import splits_of, splits_of_path
from cupre_d2.data.curation.checking import check, check_splits
from cupre_d2.data.curation.findings import Finding, exit_code, report, results, results_table
from cupre_d2.errors import DatasetError


def finding(kind: str, severity: Any, record: str = "image 1") -> Finding:
    return Finding(kind, severity, Path("a.json"), record, "so\nit is \udc80")


def test_report_and_exit_codes() -> None:
    note, warning, error = (finding(*pair) for pair in (("no cell", "note"), ("overlap", "warning"), ("leak", "error")))
    assert [exit_code(some) for some in ([], [note], [note, warning], [error, warning])] == [0, 0, 1, 2]
    assert list(report([note, error, note])) == [
        r"error: leak: a.json: image 1: so it is \udc80",
        r"note: no cell: a.json: image 1: so it is \udc80",
        r"note: no cell: a.json: image 1: so it is \udc80",
        "       1 error: leak",
        "       2 note: no cell",
    ]
    assert list(report([])) == ["nothing found"]
    by_set = {"good": [], "bad": [note, error, note]}
    assert results(by_set) == {
        "good": {"exit_code": 0, "findings": {}},
        "bad": {"exit_code": 2, "findings": {"no cell": 2, "leak": 1}},
    }
    cells = [cell.strip() for cell in results_table(by_set).splitlines()[-1].split("|")]
    assert cells == ["", "bad", "2", "1", "0", "2", "2 no cell, 1 leak", ""]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("livecell_coco_train", "train"),
        ("instances_val2017", "val"),
        ("TestSet", "test"),
        ("my-validation.v2", "val"),
        ("unlabeled", "unlabeled"),
        ("contest", "all"),
    ],
)
def test_role_of_a_name(tmp_path: Path, name: str, role: str) -> None:
    (tmp_path / f"{name}.json").write_text("{}")
    (split,) = splits_of_path(tmp_path / f"{name}.json")
    assert (split.name, split.role, split.image_root) == (name, role, tmp_path)


def test_paths(make_set: Any, tmp_path: Path) -> None:
    coco = make_set()
    (split,) = splits_of(str(coco.write()))
    assert (split.json_file, split.image_root, split.load) == (coco.file, coco.folder, None)
    (split,) = splits_of(str(coco.file), tmp_path)
    assert split.image_root == tmp_path
    make_set("val").write()
    assert [split.name for split in splits_of_path(tmp_path)] == ["train", "val"]
    (split,) = splits_of_path(coco.folder)
    assert split.role == "unlabeled" and split.load is not None and len(split.load()) == 3
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "gone"):
        with pytest.raises(DatasetError, match=missing):
            splits_of_path(tmp_path / missing)


def test_own_data_sets(make_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By their registered names; an image that is for training and for validation is found."""
    coco, key = make_set(), uuid4().hex
    train, val, images, pages = (f"{kind}_{key}" for kind in ("my_train", "my_val", "my_images", "my_pages"))
    register_cell_dataset(train, coco.folder, coco.write(), normalize=False)
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.eye(60, 80, dtype=np.uint8)).save(tmp_path / "labels/A172_1.png")
    register_cell_dataset(val, coco.folder, labels=tmp_path / "labels")
    register_cell_dataset(images, coco.folder)
    register_cell_dataset(pages, coco.folder, coco.file, page=0)
    (split,) = splits_of(train)
    assert (split.role, split.json_file, split.image_root, split.load) == ("train", coco.file, coco.folder, None)
    assert split.fields("A172_1.png") == {"percentiles": None}
    assert check([train, val]) == 2 and "error: leak: " in capsys.readouterr().out
    for name, count in ((val, 1), (images, 3), (pages, 3)):
        (split,) = splits_of(name)
        assert split.load is not None and len(records := split.load()) == count
        assert all(record.get("page") == (0 if name == pages else None) for record in records)


def test_images_of_no_json(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no COCO JSON in it; expected one, as --images says where"):
        splits_of_path(tmp_path, tmp_path / "images")


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("livecell", "livecell_train", "bbbc038"):
        with pytest.raises(DatasetError, match=str(tmp_path)):
            splits_of(name)
    for folder in ("train2017", "annotations"):
        (tmp_path / "coco" / folder).mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_train2017.json").write_text("{}")
    (split,) = splits_of("coco")
    assert (split.name, split.role, split.load) == ("coco_2017_train", "train", None)
    assert splits_of("coco_2017_train") == [split]


def test_splits_chosen_from_others_are_left_out_of_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "bbbc038/stage1_train").mkdir(parents=True)
    assert [split.name for split in splits_of("bbbc038")] == [f"bbbc038_{role}" for role in ("train", "val", "test")]
    assert [split.name for split in splits_of("bbbc038_unknown")] == ["bbbc038_unknown"]
    for path in ("images/livecell_train_val_images", "annotations/LIVECell/livecell_coco_train.json"):
        (tmp_path / "livecell" / path).mkdir(parents=True)
    assert [split.name for split in splits_of("livecell")] == ["livecell_train"]


def test_a_hundred_thousand_instances(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    cells = np.arange(400)
    outline = 8 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in range(250):
        if image < 10:
            Image.fromarray(rng.integers(0, 256, (520, 704), dtype=np.uint8)).save(tmp_path / f"{image}.png")
        images.append({"id": image, "file_name": f"{image % 10}.png", "height": 520, "width": 704})
        centres = np.stack([12 + 20 * (cells % 34), 12 + 20 * (cells // 34)], axis=1) + rng.uniform(0, 4, (400, 2))
        polygons = (outline + centres[:, None]).round(2)
        boxes = np.concatenate([polygons.min(axis=1), np.ptp(polygons, axis=1)], axis=1).tolist()
        for box, polygon in zip(boxes, polygons.reshape(400, -1).tolist(), strict=True):
            identity = {"id": len(annotations), "image_id": image, "category_id": 1, "iscrowd": 0}
            annotations.append({**identity, "bbox": box, "segmentation": [polygon]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "big.json").write_bytes(msgspec.json.encode(content))
    start = time.process_time()
    findings = check_splits(splits_of_path(tmp_path / "big.json"))
    seconds = time.process_time() - start
    assert {finding.kind for finding in findings} == {"repeated file"} and len(findings) == 240
    # 5 s on an idle core.
    assert seconds < 15
