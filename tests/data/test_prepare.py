"""Putting archives in their place, on made-up ones."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.prepare import prepare
from cupre_d2.errors import DatasetError

BY_NAME = {dataset.name: dataset for dataset in CATALOGUE}


def png(side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(stream, "PNG")
    return stream.getvalue()


def write_zip(file: Path, names: list[str]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, png())


@pytest.fixture()
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def run(name: str, raw: Path) -> list[str]:
    return list(prepare(BY_NAME[name], raw, raw.parent / "root"))


@pytest.mark.parametrize("prefix", ["", "stage1_train/", "dsb2018/stage1_train/"])
def test_zip_with_and_without_the_folder(raw: Path, prefix: str) -> None:
    write_zip(raw / "stage1_train.zip", [f"{prefix}id/images/id.png", f"{prefix}id/masks/0.png"])
    assert run("bbbc038", raw) == [f"bbbc038/stage1_train: from {raw / 'stage1_train.zip'}"]
    assert (raw.parent / "root/bbbc038/stage1_train/id/images/id.png").read_bytes() == png()
    assert run("bbbc038", raw) == ["bbbc038/stage1_train: is there, kept"]


def test_one_zip_for_two_parts_and_files_as_they_are(raw: Path) -> None:
    write_zip(raw / "images.zip", ["images/livecell_train_val_images/A172_1.tif", "images/livecell_test_images/A172_2.tif"])
    (raw / "LIVECell").mkdir()
    (raw / "LIVECell/livecell_coco_train.json").write_text("{}")
    lines = run("livecell", raw)
    root = raw.parent / "root/livecell"
    assert (root / "images/livecell_train_val_images/A172_1.tif").is_file()
    assert [file.name for file in (root / "images/livecell_test_images").iterdir()] == ["A172_2.tif"]
    assert (root / "annotations/LIVECell/livecell_coco_train.json").is_file()
    assert f"livecell/annotations/LIVECell/livecell_coco_val.json: not in {raw}; expected livecell_coco_val.json" in lines[3]


def test_tar_and_unpacked_folder(raw: Path) -> None:
    with tarfile.open(raw / "EVICAN_train2019.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("EVICAN_train2019/1.jpg")
        member.size = len(png())
        archive.addfile(member, io.BytesIO(png()))
    (raw / "deep/EVICAN_val2019").mkdir(parents=True)
    (raw / "deep/EVICAN_val2019/2.jpg").write_bytes(png())
    run("evican", raw)
    assert sorted(file.name for file in (raw.parent / "root/evican").rglob("*.jpg")) == ["1.jpg", "2.jpg"]
    assert (raw / "deep/EVICAN_val2019/2.jpg").is_file()


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_archive_that_points_outside(raw: Path, name: str) -> None:
    write_zip(raw / "stage1_train.zip", ["id/images/id.png", name])
    with pytest.raises(DatasetError, match="stage1_train.zip: member .* points outside the archive"):
        run("bbbc038", raw)
    assert not [*raw.parent.rglob("evil.png")] and not (raw.parent / "root/bbbc038/stage1_train").exists()


def test_tar_with_a_link_outside(raw: Path) -> None:
    with tarfile.open(raw / "EVICAN_train2019.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("EVICAN_train2019/link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member)
    with pytest.raises(DatasetError, match="EVICAN_train2019.tar.gz: cannot be put into"):
        run("evican", raw)


def test_truncated_archive_leaves_nothing_behind(raw: Path) -> None:
    write_zip(raw / "stage1_train.zip", ["id/images/id.png"])
    content = (raw / "stage1_train.zip").read_bytes()
    (raw / "stage1_train.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="stage1_train.zip: cannot be put into .*BadZipFile"):
        run("bbbc038", raw)
    assert not [*(raw.parent / "root/bbbc038").iterdir()]


def test_missing_raw_folder(raw: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder; expected the archives of bbbc038"):
        run("bbbc038", raw / "absent")


def test_rosettes_are_cut_into_patches(raw: Path) -> None:
    (raw / "unlabeled").mkdir()
    pixels = np.arange(128 * 128, dtype=np.uint32).reshape(128, 128).astype(np.uint8)
    Image.fromarray(pixels).save(raw / "unlabeled/a.png")
    assert run("rosette", raw)[-1] == "rosette/patches/unlabeled: cut from 1 images"
    patches = raw.parent / "root/rosette/patches/unlabeled"
    assert len([*patches.iterdir()]) == 16
    assert np.array_equal(np.asarray(Image.open(patches / "a_y032_x096.png")), pixels[32:64, 96:])
    assert run("rosette", raw)[-1] == "rosette/patches/unlabeled: is there, kept"
