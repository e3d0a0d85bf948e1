"""Gold truth that is sparse, frames without truth, and folders that are none."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pycocotools import mask as mask_util

from cupre_d2.data.formats.ctc_videos import load_ctc, load_ctc_images
from cupre_d2.errors import DatasetError

ROOT = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
LABELS = np.zeros((8, 8), np.uint16)
LABELS[1:4, 1:4], LABELS[5:8, 4:8] = 3, 9


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(file, pixels)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Three frames with marks; gold outlines both cells of the first, one of the second, none of the third."""
    for frame, kept in enumerate(((3, 9), (3,), ())):
        save(tmp_path / f"SET/01/t{frame:04d}.tif", LABELS)
        save(
            tmp_path / f"SET/01_GT/TRA/man_track{frame:04d}.tif", np.where(LABELS == 3, 1, LABELS // 9 * 2).astype(np.uint16)
        )
        if kept:
            gold = np.where(np.isin(LABELS, kept), LABELS, 0).astype(np.uint16)
            save(tmp_path / f"SET/01_GT/SEG/man_seg{frame:04d}.tif", gold)
        save(tmp_path / f"SET/01_ST/SEG/man_seg{frame:04d}.tif", LABELS)
    return tmp_path / "SET"


def test_silver_and_unlabeled(folder: Path) -> None:
    records = load_ctc(folder)
    assert [record["image_id"] for record in records] == ["SET/01/t0000", "SET/01/t0001", "SET/01/t0002"]
    assert all(len(record["annotations"]) == 2 for record in records)
    save(folder / "02/t000.tif", LABELS)
    images = load_ctc_images(folder)
    assert len(images) == 4 and not any("annotations" in record for record in images)


def test_only_complete_gold_frames_are_taken(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (record,) = load_ctc(folder, ["01"], "gold")
    assert record["image_id"] == "SET/01/t0000" and len(record["annotations"]) == 2
    assert "no gold truth for 1 of 3 frames" in caplog.text
    assert "left out 1 of 2 frames of gold truth, which do not outline every cell that TRA marks" in caplog.text


def test_no_complete_gold_frame(folder: Path) -> None:
    (folder / "01_GT/SEG/man_seg0000.tif").unlink()
    with pytest.raises(DatasetError, match="no frame with a complete gold truth in 01; expected silver truth"):
        load_ctc(folder, ["01"], "gold")


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="02.*no such folder"):
        load_ctc(folder, ["02"])
    save(folder / "01_ST/SEG/man_seg0001.tif", LABELS[:4])
    with pytest.raises(DatasetError, match="man_seg0001.tif: of 8x4 pixels; expected the size of its image, 8x8"):
        load_ctc(folder, ["01"])
    (folder / "01_ST/SEG/man_seg0001.tif").write_bytes(b"II*\0")
    with pytest.raises(DatasetError, match="man_seg0001.tif: cannot be read as an image"):
        load_ctc(folder, ["01"])
    save(folder / "01/frame.tif", LABELS)
    with pytest.raises(DatasetError, match="frame.tif: no frame of a two-dimensional video; expected t000.tif"):
        load_ctc(folder, ["01"])
    (tmp_path / "empty").mkdir()
    for name in ("empty", "gone"):
        with pytest.raises(DatasetError, match=f"{name}: no video; expected folders 01 and 02"):
            load_ctc_images(tmp_path / name)


def test_two_files_of_one_frame(folder: Path) -> None:
    save(folder / "01/t000.tif", LABELS)
    with pytest.raises(DatasetError, match="t0000.tif: t000.tif is the same frame"):
        load_ctc(folder)


def test_gold_slices_of_three_dimensions_pair_with_no_frame(folder: Path) -> None:
    save(folder / "01_GT/SEG/man_seg_000_001.tif", LABELS)
    with pytest.raises(DatasetError, match="man_seg_000_001.tif: no frame of a two-dimensional video"):
        load_ctc(folder, ["01"], "gold")


def test_truth_without_frame_is_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "01/t0001.tif").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(load_ctc(folder)) == 2
    assert "left out 1 of 3 files without a frame" in caplog.text
    for frame in (0, 2):
        (folder / f"01/t000{frame}.tif").rename(folder / f"01/t010{frame}.tif")
    with pytest.raises(DatasetError, match="no frame with a complete silver truth in 01; expected NN_ST/SEG"):
        load_ctc(folder)


@pytest.mark.parametrize(
    ("marks", "complete"),
    [
        ({3: 1, 9: 2}, True),
        # Labels of outlines and of marks need not agree, nor need every outline be marked.
        ({9: 7}, True),
        # One outline over two marks is not the outline of either.
        ({3: 1, "in 3": 2}, False),
        # A mark of which no outline holds more than half.
        ({9: 2, "half in 3": 4}, False),
        ({}, True),
    ],
)
def test_gold_frame_is_complete_if_each_mark_has_its_outline(folder: Path, marks: dict, complete: bool) -> None:
    marked = np.zeros_like(LABELS)
    for place, mark in marks.items():
        marked[{3: np.s_[2, 2:4], 9: np.s_[6, 6], "in 3": np.s_[1, 1:3], "half in 3": np.s_[3, 2:6]}[place]] = mark
    for frame in range(3):
        save(folder / f"01_GT/TRA/man_track{frame:04d}.tif", marked)
    (folder / "01_GT/SEG/man_seg0001.tif").unlink()
    if complete:
        assert [record["image_id"] for record in load_ctc(folder, ["01"], "gold")] == ["SET/01/t0000"]
    else:
        with pytest.raises(DatasetError, match="no frame with a complete gold truth"):
            load_ctc(folder, ["01"], "gold")


@pytest.mark.real_data
@pytest.mark.skipif(not (ROOT / "ctc").is_dir(), reason="no ctc")
@pytest.mark.parametrize(
    ("name", "video", "complete"),
    [("DIC-C2DH-HeLa", "01", ["002", "005", "021", "031", "033", "054"]), ("Fluo-N2DL-HeLa", "02", [])],
)
def test_real_gold(name: str, video: str, complete: list[str]) -> None:
    """Which frames outline as many cells as are marked was counted by hand."""
    if not complete:
        with pytest.raises(DatasetError, match="no frame with a complete gold truth"):
            load_ctc(ROOT / "ctc" / name, [video], "gold")
        return
    records = load_ctc(ROOT / "ctc" / name, [video], "gold")
    assert [record["image_id"] for record in records] == [f"{name}/{video}/t{frame}" for frame in complete]
    for record in records:
        labels = tifffile.imread(ROOT / f"ctc/{name}/{video}_GT/SEG/man_seg{record['image_id'][-3:]}.tif")
        areas = [int((labels == value).sum()) for value in np.unique(labels) if value]
        assert [mask_util.area(annotation["segmentation"]) for annotation in record["annotations"]] == areas
