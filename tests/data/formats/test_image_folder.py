"""Each raw format: what is read, and the one line that says what is wrong with bad input."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.formats.image_folder import load_image_folder
from cupre_d2.data.formats.mask_images import list_ids, load_images, load_label_images, load_mask_files
from cupre_d2.data.image_files import image_size
from cupre_d2.errors import DatasetError

HEIGHT, WIDTH = 12, 20


def save_image(file: Path, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(file)
    return file


def one_line(error: pytest.ExceptionInfo[DatasetError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------------------------- image folder


def test_image_folder_is_sorted_and_not_recursive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.PNG", "a.jpg", "c.tiff", "d.bmp", "sub/e.png"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    with caplog.at_level(logging.INFO):
        records = load_image_folder(tmp_path)
    assert [record["image_id"] for record in records] == ["a.jpg", "b.PNG", "c.tiff", "d.bmp"]
    assert records[0] == {"file_name": str(tmp_path / "a.jpg"), "image_id": "a.jpg", "height": HEIGHT, "width": WIDTH}
    assert "left out 1 files" in caplog.text and ".txt" in caplog.text


def test_image_size_of_unusual_files(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "channels.tif", np.zeros((HEIGHT, WIDTH, 5), np.uint16), planarconfig="contig")
    assert image_size(tmp_path / "channels.tif") == (HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["bad.png", "bad.tif", "bad.jpg"])
def test_unreadable_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no image at all")
    with pytest.raises(DatasetError, match="cannot be read as an image") as error:
        load_image_folder(tmp_path)
    assert name in one_line(error)


def test_image_folder_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="gone: no such folder"):
        load_image_folder(tmp_path / "gone")
    with pytest.raises(DatasetError, match="no image"):
        load_image_folder(tmp_path)


# ------------------------------------------------------------------------------------------------------- label images


def label_array() -> np.ndarray:
    """Instance 3 in two parts, 200 touching it; not contiguous."""
    labels = np.zeros((HEIGHT, WIDTH), np.int64)
    labels[1:4, 2:6] = 3
    labels[8, 8] = 3
    labels[1:4, 6:9] = 200
    return labels


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint16), (".tiff", np.uint32)],
)
def test_label_images(tmp_path: Path, suffix: str, dtype: type) -> None:
    save_image(tmp_path / "images/a.jpg")
    labels: np.ndarray = label_array().astype(dtype)
    labels[labels == 200] = min(np.iinfo(dtype).max, 60000)
    file = tmp_path / f"labels/a{suffix}"
    file.parent.mkdir()
    if suffix == ".png":
        Image.fromarray(labels).save(file)
    else:
        tifffile.imwrite(file, labels)
    (record,) = load_label_images(tmp_path / "images", tmp_path / "labels")
    assert record["image_id"] == "a" and record["file_name"] == str(tmp_path / "images/a.jpg")
    found = record["annotations"]
    assert [(a["category_id"], a["iscrowd"], a["bbox_mode"]) for a in found] == [(0, 0, BoxMode.XYWH_ABS)] * 2
    for instance, value, box in zip(found, (3, 200), ([2, 1, 7, 8], [6, 1, 3, 3]), strict=True):
        np.testing.assert_array_equal(mask_util.decode(instance["segmentation"]), label_array() == value)
        assert instance["bbox"] == box
        json.dumps(instance)


def test_label_image_with_a_palette_keeps_its_indices(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    image = Image.frombytes("P", (WIDTH, HEIGHT), label_array().astype(np.uint8).tobytes())
    image.putpalette([0] * 768)
    image.save(tmp_path / "labels/a.png")
    (record,) = load_label_images(tmp_path / "images", tmp_path / "labels")
    assert len(record["annotations"]) == 2


def test_label_image_of_zeros_is_an_image_without_cells(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.png")
    save_image(tmp_path / "labels/a.png")
    assert load_label_images(tmp_path / "images", tmp_path / "labels")[0]["annotations"] == []


def test_unpaired_images_and_labels_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("images/a.png", "images/b.png", "images/c.png", "labels/a.tif", "labels/z.tif"):
        save_image(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        records = load_label_images(tmp_path / "images", tmp_path / "labels")
    assert [record["image_id"] for record in records] == ["a"]
    assert "left out 2 images without a label image, the first b" in caplog.text
    assert "left out 1 label images without an image, the first z" in caplog.text


def test_label_image_errors(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    save_image(images / "a.png")
    save_image(labels / "z.png")
    with pytest.raises(DatasetError, match="no label image fits"):
        load_label_images(images, labels)
    save_image(labels / "a.png", (HEIGHT, WIDTH + 1))
    with pytest.raises(DatasetError, match=f"a.png: of 21x12 pixels.*{WIDTH}x{HEIGHT}"):
        load_label_images(images, labels)
    save_image(labels / "a.png", (HEIGHT, WIDTH, 3))
    with pytest.raises(DatasetError, match="a.png: label image of shape .*one channel"):
        load_label_images(images, labels)
    (labels / "a.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="a.png: cannot be read as an image"):
        load_label_images(images, labels)
    (labels / "a.png").unlink()
    tifffile.imwrite(labels / "a.tif", np.ones((HEIGHT, WIDTH), np.float32))
    with pytest.raises(DatasetError, match="a.tif: label image of .*float32"):
        load_label_images(images, labels)
    save_image(labels / "a.png")
    with pytest.raises(DatasetError, match="same stem"):
        load_label_images(images, labels)
    with pytest.raises(DatasetError, match="gone: no such folder"):
        load_label_images(images, tmp_path / "gone")


# --------------------------------------------------------------------------------------------------------- mask files


def write_nuclei(folder: Path, image_id: str, masks: int) -> None:
    save_image(folder / image_id / "images" / f"{image_id}.png", (HEIGHT, WIDTH, 4))
    (folder / image_id / "masks").mkdir()
    for index in range(masks):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[index : index + 2, 4:9] = 255
        Image.fromarray(mask).save(folder / image_id / "masks" / f"{index}.png")


def test_mask_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nuclei(tmp_path, "y", 2)
    write_nuclei(tmp_path, "x", 1)
    save_image(tmp_path / "y/masks/empty.png")
    (tmp_path / "readme.txt").write_text("x")
    assert list_ids(tmp_path) == ["x", "y"]
    with caplog.at_level(logging.WARNING):
        record, other = load_mask_files(tmp_path, ["y", "x"])
    assert (record["image_id"], other["image_id"]) == ("y", "x")
    assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
    assert [instance["bbox"] for instance in record["annotations"]] == [[4, 0, 5, 2], [4, 1, 5, 2]]
    mask = mask_util.decode(record["annotations"][1]["segmentation"])
    assert mask.sum() == 10 and mask[1:3, 4:9].all()
    assert "left out 1 of 4 mask files" in caplog.text
    assert load_images(tmp_path, ["y"]) == [{key: value for key, value in record.items() if key != "annotations"}]


def test_mask_file_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="gone: no such folder"):
        list_ids(tmp_path / "gone")
    with pytest.raises(DatasetError, match="no image"):
        list_ids(tmp_path)
    write_nuclei(tmp_path, "x", 1)
    save_image(tmp_path / "x/masks/0.png", (HEIGHT, 3))
    with pytest.raises(DatasetError, match="0.png: of 3x12 pixels"):
        load_mask_files(tmp_path, ["x"])
    (tmp_path / "x/masks/0.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="0.png: cannot be read"):
        load_mask_files(tmp_path, ["x"])
    (tmp_path / "y/images").mkdir(parents=True)
    with pytest.raises(DatasetError, match="y.png: no such image"):
        load_mask_files(tmp_path, ["y"])
    save_image(tmp_path / "y/images/y.png")
    with pytest.raises(DatasetError, match="masks: no such folder"):
        load_mask_files(tmp_path, ["y"])
