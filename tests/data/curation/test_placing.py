"""Putting archives in their place, on made-up ones."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.curation.placing import prepare
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
    # The list of members is at the end; their checksums tell damage of the pixels.
    for broken in (content[: len(content) // 2], content.replace(b"IDAT", b"idat", 1)):
        (raw / "stage1_train.zip").write_bytes(broken)
        with pytest.raises(DatasetError, match="stage1_train.zip: cannot be put into .*BadZipFile"):
            run("bbbc038", raw)
        assert not [path for path in raw.parent.rglob("*") if path.is_file() and path.parent != raw]


def placed(raw: Path) -> list[str]:
    root = raw.parent / "root"
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())


def test_what_is_of_other_data_sets_is_not_taken(raw: Path) -> None:
    """A folder of downloads, with COCO's and LIVECell's archives and holiday pictures."""
    for folder in ("holidays/images", "holidays/masks", "holidays/train", "images", "train", "annotations"):
        (raw / folder).mkdir(parents=True)
        (raw / folder / "a.jpg").write_bytes(png())
    write_zip(raw / "train2017.zip", ["train2017/1.jpg"])
    write_zip(raw / "annotations_trainval2017.zip", ["annotations/instances_train2017.json"])
    write_zip(raw / "images.zip", ["images/livecell_train_val_images/A172_1.tif"])
    for name in ("evican", "bbbc039", "rosette", "bbbc038", "tnbc", "chok1_bf"):
        assert not any(": from " in line for line in run(name, raw))
    assert placed(raw) == []
    line = run("bbbc039", raw)[0]
    assert line.endswith(f"; not taken, as it is not in them: {raw / 'images'}, {raw / 'images.zip'}")
    run("livecell", raw)
    run("coco", raw)
    assert placed(raw) == [
        "coco/annotations/instances_train2017.json",
        "coco/train2017/1.jpg",
        "livecell/images/livecell_train_val_images/A172_1.tif",
    ]


@pytest.mark.parametrize("prefix", ["", "images/", "BBBC039/images/", "other/"])
def test_images_zip_of_bbbc039(raw: Path, prefix: str) -> None:
    write_zip(raw / "images.zip", [f"{prefix}a.tif", f"{prefix}b.tif", "__MACOSX/._a.tif"])
    run("bbbc039", raw)
    assert placed(raw) == ["bbbc039/images/a.tif", "bbbc039/images/b.tif"]


@pytest.mark.parametrize("prefix", ["", "tnbc/", "TNBC_NucleiSegmentation/"])
def test_the_only_folder_of_an_archive_is_the_part(raw: Path, prefix: str) -> None:
    write_zip(raw / "TNBC_NucleiSegmentation.zip", [f"{prefix}Slide_01/a.png", f"{prefix}GT_01/a.png", "__MACOSX/._x"])
    assert run("tnbc", raw) == [f"tnbc: from {raw / 'TNBC_NucleiSegmentation.zip'}"]
    assert placed(raw) == ["tnbc/GT_01/a.png", "tnbc/Slide_01/a.png"]


def test_a_folder_is_no_file(raw: Path) -> None:
    (raw / "livecell_coco_train.json").mkdir()
    (raw / "livecell_coco_train.json/x").touch()
    write_zip(raw / "EVICAN2.zip", ["instances_train2019_EVICAN2.json/1.jpg", "a/instances_val2019_EVICAN2.json"])
    assert f"not taken, as it is not in them: {raw / 'livecell_coco_train.json'}" in run("livecell", raw)[2]
    run("evican", raw)
    assert placed(raw) == ["evican/annotations/instances_val2019_EVICAN2.json"]


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
