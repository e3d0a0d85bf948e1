"""Gold truth that is sparse, frames without truth, and folders that are none."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cupre_d2.data.formats.ctc import load_ctc, load_ctc_images
from cupre_d2.errors import DatasetError

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
    records = load_ctc(folder, ["01"])
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
    assert "left out 1 of 2 frames of gold truth that outline a part of the cells only" in caplog.text


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
    with pytest.raises(DatasetError, match="frame.tif: no frame number"):
        load_ctc(folder, ["01"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no video; expected folders 01 and 02"):
        load_ctc_images(tmp_path / "empty")
