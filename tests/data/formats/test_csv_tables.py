"""Formats that come with a CSV: run lengths and counts."""

import itertools
import logging
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.formats.csv_tables import BOWL, load_count_table, load_rle_csv
from cupre_d2.errors import DatasetError

ROOT = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
HEIGHT, WIDTH = 5, 7


@pytest.fixture()
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / f"{name}.png")
    return folder


def write(folder: Path, *rows: str) -> Path:
    file = folder.parent / "table.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def runs(mask: np.ndarray, order: str) -> str:
    """Slow and obvious: pixel by pixel."""
    flat = mask.ravel() if order == "rows" else mask.T.ravel()
    grouped = [list(pixels) for _, pixels in itertools.groupby(enumerate(flat, start=1), key=lambda pixel: pixel[1])]
    return " ".join(f"{run[0][0]} {len(run)}" for run in grouped if run[0][1])


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_run_lengths(images: Path, order: str) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((HEIGHT, WIDTH)) < 0.4 for _ in range(3)]
    table = write(
        images,
        "id,annotation,width,height,cell_type",
        *(f"{name},{runs(mask, order)},{WIDTH},{HEIGHT},shsy5y" for name, mask in zip("aba", masks, strict=True)),
    )
    a, b = load_rle_csv(table, images, order=order)  # type: ignore[arg-type]
    assert (a["image_id"], a["cell_type"], a["height"], a["width"]) == ("a", "shsy5y", HEIGHT, WIDTH)
    found = [mask_util.decode(annotation["segmentation"]) for annotation in (*a["annotations"], *b["annotations"])]
    assert np.array_equal(found, [masks[0], masks[2], masks[1]])


def test_bowl_names_the_columns_otherwise_and_an_image_may_have_no_cell(images: Path) -> None:
    table = write(images, "ImageId,EncodedPixels", "a,1 2 10 1", "b,")
    a, b = load_rle_csv(table, images, BOWL, "columns")
    assert mask_util.decode(a["annotations"][0]["segmentation"]).nonzero()[1].tolist() == [0, 0, 1]
    assert b["annotations"] == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,1 2 3", "line 2, field annotation: expected pairs"),
        ("a,1 x", "line 2, field annotation: expected pairs"),
        ("a,1 1_0", "line 2, field annotation: expected pairs"),
        ("a,1.0 2", "line 2, field annotation: expected pairs"),
        ("a,-1 2", "runs leave the image"),
        (f"{'a' * 300},1 2", "line 2: image .*a.png is not on disk"),
        ("a\0,1 2", "table.csv"),
        ("a,1 99999999999999999999", "line 2, field annotation: expected pairs"),
        ("a,35 2", "line 2, field annotation: runs leave the image; expected pixels 1 to 35"),
        ("a,0 2", "runs leave the image"),
        ("a,3 0", "runs leave the image"),
        ("a,1 9223372036854775807", "runs leave the image"),
        ("a,4 2 1 4", "runs overlap"),
        ("c,1 2", "line 2: image .*c.png is not on disk"),
        ("../train/a,1 2", "line 2: image '../train/a.png'; expected the name of a file below"),
        ("/etc/passwd,1 2", "expected the name of a file below"),
        (",1 2", "line 2: image ''; expected the name of a file below"),
        ("a,1 2,3", "line 2: more or fewer fields than columns; expected 2"),
        ("a", "line 2: more or fewer fields"),
        ('a,"1', "cannot be read as CSV"),
    ],
)
def test_bad_run_lengths(images: Path, row: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as error:
        load_rle_csv(write(images, "id,annotation", row), images)
    assert "table.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "said"), [("8,5", "field width: '8'; expected that of its image, 7"), ("7,", "field height: ''")]
)
def test_size_in_the_table_is_the_images(images: Path, size: str, said: str) -> None:
    with pytest.raises(DatasetError, match=f"line 3, {said}"):
        load_rle_csv(write(images, "id,annotation,width,height", "a,1 2,7,5", f"a,4 1,{size}"), images)


def test_what_run_lengths_leave_out_is_counted(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        (record,) = load_rle_csv(write(images, "id,annotation", "a,1 2", "a,", "a,4 1"), images)
    assert len(record["annotations"]) == 2
    assert "left out 1 rows without runs" in caplog.text
    assert "left out 1 images of" in caplog.text


def test_empty_table(images: Path) -> None:
    with pytest.raises(DatasetError, match="no row; expected one an instance"):
        load_rle_csv(write(images, "id,annotation"), images)


@pytest.mark.real_data
@pytest.mark.skipif(not (ROOT / "ctc/DIC-C2DH-HeLa").is_dir(), reason="no ctc")
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_real_masks_as_run_lengths(tmp_path: Path, order: Literal["rows", "columns"]) -> None:
    folder = ROOT / "ctc/DIC-C2DH-HeLa"
    frames = [file.stem[1:] for file in sorted((folder / "01").glob("*.tif"))[:2]]
    labels = {f"t{frame}": tifffile.imread(folder / f"01_ST/SEG/man_seg{frame}.tif") for frame in frames}
    cells = [(name, pixels == value) for name, pixels in labels.items() for value in np.unique(pixels) if value]
    (tmp_path / "train").mkdir()
    table = write(tmp_path / "train", "id,annotation", *(f"{name},{runs(mask, order)}" for name, mask in cells))
    records = load_rle_csv(table, folder / "01", order=order, locate=lambda name: f"{name}.tif")
    found = [(record["image_id"], annotation) for record in records for annotation in record["annotations"]]
    for (name, annotation), (expected, mask) in zip(found, cells, strict=True):
        assert name == expected
        assert np.array_equal(mask_util.decode(annotation["segmentation"]), mask)


def test_counts(images: Path) -> None:
    records = load_count_table(images, write(images, "count,image,by", "3,b.png,me", "0,a.png,me"))
    assert [(record["image_id"], record["count"]) for record in records] == [("b.png", 3), ("a.png", 0)]
    assert (records[0]["height"], records[0]["width"]) == (HEIGHT, WIDTH)
    assert load_count_table(images, write(images, "a.png,12"), columns=None)[0]["count"] == 12


def test_images_without_count_are_counted(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    (images / "notes.txt").write_text("")
    with caplog.at_level(logging.INFO):
        load_count_table(images, write(images, "image,count", "a.png,1"))
    assert "left out 1 images of" in caplog.text


@pytest.mark.real_data
@pytest.mark.skipif(not (ROOT / "bbbc005").is_dir(), reason="no bbbc005")
def test_real_counts() -> None:
    folder = ROOT / "bbbc005"
    records = load_count_table(folder / "BBBC005_v1_images", folder / "counts.csv", ("file_name", "count"))
    assert len(records) == 120
    for record in records:
        assert f"_C{record['count']}_" in record["file_name"]
        assert (record["height"], record["width"]) == (260, 348)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["image,count", "a.png,1", "a.png,2"], "line 3: image a.png for the second time"),
        (["image,count", "a.png,1", "./a.png,2"], "line 3: image ./a.png for the second time"),
        (["image,count", f"a.png,{'9' * 5000}"], "line 2, field count: '9"),
        (["image,count", "a.png,1.5"], "line 2, field count: '1.5'; expected a whole number"),
        (["image,count", "a.png,-1"], "field count: '-1'"),
        (["image,count", "c.png,1"], "line 2: image .*c.png is not on disk"),
        (["image,count", "../x.png,1"], "expected the name of a file below"),
        (["image,count"], "no row"),
        (["file,count", "a.png,1"], "columns file, count; expected image, count"),
    ],
)
def test_bad_counts(images: Path, rows: list[str], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        load_count_table(images, write(images, *rows))


def test_missing_table(images: Path) -> None:
    with pytest.raises(DatasetError, match="no such file; expected a CSV with columns id, annotation"):
        load_rle_csv(images / "absent.csv", images)
