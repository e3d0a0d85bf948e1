"""The same image twice, in a split or in two; and images of splits that are no COCO file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from cupre_d2.data.curation.checked_splits import CheckedSplit, splits_of_path
from cupre_d2.data.curation.checking import check_splits
from cupre_d2.data.curation.findings import Finding, exit_code


def summary(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.split, finding.record) for finding in findings]


def re_encode(coco: Any, number: int, name: str, pixels: Callable[[np.ndarray], np.ndarray] = np.asarray) -> None:
    """Another file with the pixels of image `number`."""
    Image.fromarray(pixels(np.asarray(Image.open(coco.folder / f"A172_{number}.png")))).save(coco.folder / name)


def with_opaque_alpha(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=2)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("copy.png", np.asarray), ("copy.tif", np.asarray), ("copy.bmp", np.asarray), ("copy.png", with_opaque_alpha)],
)
def test_same_content_under_another_name(make_set: Any, name: str, pixels: Callable[[np.ndarray], np.ndarray]) -> None:
    coco = make_set()
    re_encode(coco, 1, name, pixels)
    coco.content["images"][1]["file_name"] = name
    (finding,) = check_splits(splits_of_path(coco.write()))
    assert (finding.kind, finding.record) == ("repeated content", f"image 2 ({name})")
    assert finding.message == "the same as image 1 (A172_1.png); 12 annotations here, 12 there"


def test_nearly_the_same_content_is_another(make_set: Any) -> None:
    coco = make_set()
    re_encode(coco, 1, "copy.png", lambda grey: np.where(np.arange(grey.size).reshape(grey.shape) == 9, grey ^ 1, grey))
    coco.content["images"][1]["file_name"] = "copy.png"
    assert check_splits(splits_of_path(coco.write())) == []


def test_the_entry_with_fewer_annotations_is_the_repeated_one(make_set: Any) -> None:
    coco = make_set()
    coco.content["images"].insert(0, {**coco.content["images"][0], "id": 50})
    coco.add_cell(50, [2, 2, 12, 2, 12, 12, 2, 12])
    assert summary(check_splits(splits_of_path(coco.write()))) == [("repeated file", "train", "image 50 (A172_1.png)")]


def test_leak_is_reported_for_the_training_side(make_set: Any, tmp_path: Path) -> None:
    train, val = make_set("my_train"), make_set("my_val", first=11)
    train.write(), val.write()
    assert check_splits(splits_of_path(tmp_path)) == []
    re_encode(val, 3, "other.tif")
    val.content["images"][0]["file_name"] = "other.tif"
    train.write(), val.write()
    findings = check_splits(splits_of_path(tmp_path))
    assert summary(findings) == [("leak", "my_train", "image 3 (A172_3.png)")]
    assert findings[0].message == "the same as image 11 (other.tif) of my_val" and exit_code(findings) == 2


def test_leak_of_a_file_that_cannot_be_read(make_set: Any, tmp_path: Path) -> None:
    train, val = make_set("train"), make_set("val", first=11)
    (train.folder / "A172_1.png").unlink()
    val.content["images"][0]["file_name"] = "A172_1.png"
    train.write(), val.write()
    kinds = [finding.kind for finding in check_splits(splits_of_path(tmp_path))]
    assert sorted(kinds) == ["leak", "missing image", "missing image"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("train", "val", ("leak", "train")),
        ("train", "test", ("leak", "train")),
        ("val", "test", ("leak", "val")),
        ("unlabeled", "test", ("leak", "unlabeled")),
        ("all", "val", ("leak", "all")),
        ("train", "unlabeled", ("shared images", "train")),
        ("train", "all", ("shared images", "train")),
        ("val", "val", ("shared images", "val")),
    ],
)
def test_who_may_share_with_whom(tmp_path: Path, one: Any, other: Any, expected: tuple[str, str]) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "b.png")

    def split(role: Any, name: str, suffix: str) -> CheckedSplit:
        records = [{"file_name": str(tmp_path / name), "image_id": name}]
        return CheckedSplit(role + suffix, role, lambda: records, None, tmp_path)

    for pair in (
        (split(one, "a.png", "1"), split(other, "b.png", "2")),
        (split(other, "b.png", "2"), split(one, "a.png", "1")),
    ):
        (finding,) = check_splits(pair)
        assert finding.kind == expected[0]
        if expected[0] == "leak":
            assert finding.split == expected[1] + "1" and finding.file == tmp_path / "a.png"
        else:
            assert finding.severity == "note" and finding.message.startswith("1 images are in")


def test_folder_of_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((5, 8, 8), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "e.tif", np.zeros((8, 8, 2), np.uint8), photometric="minisblack", planarconfig="contig")
    findings = check_splits(splits_of_path(tmp_path))
    assert summary(findings) == [
        ("unreadable image", tmp_path.name, "image c.png"),
        ("unreadable image", tmp_path.name, "image d.tif"),
        ("unreadable image", tmp_path.name, "image e.tif"),
        ("repeated content", tmp_path.name, "image b.png"),
    ]
    assert [finding.file.name for finding in findings] == ["c.png", "d.tif", "e.tif", "b.png"]


def test_pages_and_channels_of_records(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 2)).astype(np.uint8)
    stack[2] = stack[0]
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "TYXC"}, photometric="minisblack", planarconfig="contig")
    base = {"file_name": str(tmp_path / "a.tif"), "image_id": "a", "height": 8, "width": 8}
    records = [{**base, "page": page, "channels": (0,)} for page in range(3)] + [{**base, "page": 1, "channels": (5,)}]
    split = CheckedSplit("stack", "all", lambda: records, None, tmp_path)
    findings = check_splits([split, CheckedSplit("again", "val", lambda: records[1:2], None, tmp_path)])
    assert ("repeated content", "stack", "image a (page 2)") in summary(findings)
    assert ("leak", "stack", "image a (page 1)") in summary(findings)


def test_label_images(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    labels = np.zeros((20, 30), np.uint16)
    labels[2:9, 3:9], labels[12:18, 3:9] = 1, 700
    for index in range(3):
        Image.fromarray(np.full((20, 30), index, np.uint8)).save(tmp_path / f"images/{index}.png")
        tifffile.imwrite(tmp_path / f"labels/{index}.tif", labels if index else 0 * labels)
    (finding,) = check_splits(splits_of_path(tmp_path))
    assert (finding.kind, finding.record, finding.severity) == ("no cell", "image 0", "note")
    tifffile.imwrite(tmp_path / "labels/1.tif", labels[:, 1:])
    (finding,) = check_splits(splits_of_path(tmp_path))
    assert finding.kind == "unusable file" and "1.tif" in finding.message and "30x20" in finding.message
