"""Formats that come with a CSV: run lengths and counts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.formats.count_table import load_count_table
from cupre_d2.data.formats.rle_csv import BOWL, load_rle_csv
from cupre_d2.errors import DatasetError

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
    """Slow and obvious: one run a pixel."""
    flat = mask.ravel() if order == "rows" else mask.T.ravel()
    return " ".join(f"{index + 1} 1" for index in np.flatnonzero(flat))


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


def test_counts(images: Path) -> None:
    records = load_count_table(images, write(images, "count,image,by", "3,b.png,me", "0,a.png,me"))
    assert [(record["image_id"], record["count"]) for record in records] == [("b.png", 3), ("a.png", 0)]
    assert (records[0]["height"], records[0]["width"]) == (HEIGHT, WIDTH)
    assert load_count_table(images, write(images, "a.png,12"), columns=None)[0]["count"] == 12


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["image,count", "a.png,1", "a.png,2"], "line 3: image a.png for the second time"),
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
