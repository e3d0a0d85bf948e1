"""Formats of folders: binary masks and stacks of them, boundary-coded masks, label images, mask files, classes."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.formats.image_folder import load_class_folders
from cupre_d2.data.formats.mask_images import (
    list_ids,
    load_binary_masks,
    load_binary_stack,
    load_boundary_masks,
    load_label_images,
    load_mask_files,
)
from cupre_d2.data.images import read_record
from cupre_d2.errors import DatasetError

ROOT = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
# Two parts and, in the first, a hole; the parts meet at no corner.
MASK = np.zeros((9, 12), bool)
MASK[1:6, 1:6] = True
MASK[2:4, 2:4] = False
MASK[6:8, 8:11] = True


def save(file: Path, pixels: np.ndarray, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        tifffile.imwrite(file, pixels, **options)
    else:
        Image.fromarray(pixels).save(file)
    return file


def masks_of(record: dict[str, Any]) -> list[np.ndarray]:
    return [mask_util.decode(annotation["segmentation"]).astype(bool) for annotation in record["annotations"]]


def flood(same: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels that a pixel reaches by king's moves over an HxW mask: slow and obvious."""
    reached, todo = np.zeros_like(same), [(row, column)]
    while todo:
        y, x = todo.pop()
        if 0 <= y < same.shape[0] and 0 <= x < same.shape[1] and same[y, x] and not reached[y, x]:
            reached[y, x] = True
            todo += [(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return reached


def regions(values: np.ndarray) -> set[bytes]:
    """Masks of the connected regions of one value, as bytes."""
    return {flood(values == values[y, x], y, x).tobytes() for y, x in np.argwhere(values)}


# ------------------------------------------------------------------------------------------------------- binary masks


@pytest.mark.parametrize("inverted", [False, True])
def test_binary_masks(tmp_path: Path, inverted: bool) -> None:
    save(tmp_path / "raw/00.tif", np.zeros(MASK.shape, np.uint8))
    save(tmp_path / "masks/00.png", (~MASK if inverted else MASK).astype(np.uint8) * 255)
    (whole,) = load_binary_masks(tmp_path / "raw", tmp_path / "masks", inverted=inverted)
    assert whole["image_id"] == "raw/00" and whole["file_name"] == str(tmp_path / "raw/00.tif")
    assert np.array_equal(masks_of(whole), [MASK])
    (parts,) = load_binary_masks(tmp_path / "raw", tmp_path / "masks", "components", inverted)
    assert {mask.tobytes() for mask in masks_of(parts)} == regions(MASK) and len(parts["annotations"]) == 2
    assert [annotation["bbox"] for annotation in parts["annotations"]] == [[1, 1, 5, 5], [8, 6, 3, 2]]


def test_mask_without_foreground_is_an_image_without_cells(tmp_path: Path) -> None:
    for folder in ("raw", "masks"):
        save(tmp_path / folder / "00.png", np.zeros(MASK.shape, np.uint8))
    for instances in ("one", "components"):
        assert load_binary_masks(tmp_path / "raw", tmp_path / "masks", instances)[0]["annotations"] == []  # type: ignore[arg-type]


def test_unpaired_binary_masks_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("raw/a.png", "raw/b.png", "masks/a.png", "masks/c.png"):
        save(tmp_path / name, MASK.astype(np.uint8))
    with caplog.at_level(logging.WARNING):
        assert len(load_binary_masks(tmp_path / "raw", tmp_path / "masks")) == 1
    assert "left out 1 images without a mask, the first b" in caplog.text
    assert "left out 1 masks without an image, the first c" in caplog.text


def test_binary_mask_errors(tmp_path: Path) -> None:
    raw, masks = tmp_path / "raw", tmp_path / "masks"
    save(raw / "a.png", MASK.astype(np.uint8))
    save(masks / "a.jpg", MASK.astype(np.uint8))
    with pytest.raises(DatasetError, match="masks: no image; expected files that end in .png, .tif"):
        load_binary_masks(raw, masks)
    save(masks / "b.png", MASK.astype(np.uint8))
    with pytest.raises(DatasetError, match="no mask fits an image of"):
        load_binary_masks(raw, masks)
    save(masks / "a.png", MASK[:-1].astype(np.uint8))
    with pytest.raises(DatasetError, match="a.png: of 12x8 pixels; expected the size of its image, 12x9"):
        load_binary_masks(raw, masks)
    content = save(masks / "a.png", MASK.astype(np.uint8)).read_bytes()
    (masks / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="a.png: cannot be read as an image"):
        load_binary_masks(raw, masks)


def test_stacks(tmp_path: Path) -> None:
    pages = np.stack([np.roll(MASK, shift, axis=1) for shift in range(3)]).astype(np.uint8)
    image = save(tmp_path / "training.tif", pages * 9, photometric="minisblack")
    masks = save(tmp_path / "truth.tif", pages * 255, photometric="minisblack")
    records = load_binary_stack(image, masks)
    assert [(record["image_id"], record["page"]) for record in records] == [(f"training/000{n}", n) for n in range(3)]
    for record, page in zip(records, pages, strict=True):
        assert np.array_equal(masks_of(record), [page > 0])
        assert np.array_equal(read_record(record, percentiles=None)[..., 0], page * 9)


def test_stack_errors(tmp_path: Path) -> None:
    image = save(tmp_path / "a.tif", np.zeros((3, *MASK.shape), np.uint8), photometric="minisblack")
    two = save(tmp_path / "b.tif", np.zeros((2, *MASK.shape), np.uint8), photometric="minisblack")
    narrow = save(tmp_path / "c.tif", np.zeros((3, 9, 7), np.uint8), photometric="minisblack")
    with pytest.raises(DatasetError, match="b.tif: 2 pages; expected as many as .*a.tif has, 3"):
        load_binary_stack(image, two)
    with pytest.raises(DatasetError, match="c.tif: of 7x9 pixels; expected the size of its image, 12x9"):
        load_binary_stack(image, narrow)
    with pytest.raises(DatasetError, match="gone.tif: no such image"):
        load_binary_stack(image, tmp_path / "gone.tif")


# ----------------------------------------------------------------------------------------------- boundary-coded masks


def write_boundary_masks(folder: Path, values: np.ndarray, listed: str) -> tuple[Path, Path, Path]:
    rgba = np.zeros((*values.shape, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = values, 255
    save(folder / "masks/a.png", rgba)
    save(folder / "images/a.tif", np.zeros(values.shape, np.uint16))
    (folder / "training.txt").write_text(listed)
    return folder / "images", folder / "masks", folder / "training.txt"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_boundary_masks(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    (record,) = load_boundary_masks(*write_boundary_masks(tmp_path_factory.mktemp("bbbc039"), values, "a.png\n"))
    assert record["image_id"] == "a" and Path(record["file_name"]).name == "a.tif"
    found = masks_of(record)
    assert len(found) == len(regions(values)) and {mask.tobytes() for mask in found} == regions(values)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("", "training.txt: empty"),
        ("a.png\n\nb.png", "line 3: 'b.png'; expected a mask of"),
        ("../masks/a.png", "line 1: '../masks/a.png'; expected a mask of"),
        ("a.tif", "line 1: 'a.tif'; expected a mask of"),
        ("a.png\na.png", "line 2: 'a.png' for the second time"),
    ],
)
def test_bad_lists_of_boundary_masks(tmp_path: Path, listed: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        load_boundary_masks(*write_boundary_masks(tmp_path, MASK.astype(np.uint8), listed))


def test_boundary_mask_errors(tmp_path: Path) -> None:
    images, masks, names = write_boundary_masks(tmp_path, MASK.astype(np.uint8), "a.png")
    with pytest.raises(DatasetError, match="gone.txt: cannot be read"):
        load_boundary_masks(images, masks, tmp_path / "gone.txt")
    save(masks / "a.png", MASK[:, 1:].astype(np.uint8))
    with pytest.raises(DatasetError, match="a.png: of 11x9 pixels; expected the size of its image, 12x9"):
        load_boundary_masks(images, masks, names)
    (masks / "a.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="a.png: cannot be read as an image"):
        load_boundary_masks(images, masks, names)


# ------------------------------------------------------------------------------------------ label images, mask files


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", ">u2"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_label_tiffs(tmp_path: Path, dtype: str, compression: str | None) -> None:
    labels = (MASK * 5).astype(dtype)
    labels[6:8, 8:11] = np.iinfo(dtype).max
    labels[8, 0] = 5
    save(tmp_path / "images/a.png", MASK.astype(np.uint8))
    save(tmp_path / "labels/a.tif", labels, compression=compression, byteorder=">" if dtype == ">u2" else None)
    (record,) = load_label_images(tmp_path / "images", tmp_path / "labels")
    assert np.array_equal(masks_of(record), [labels == 5, labels == np.iinfo(dtype).max])


@pytest.mark.parametrize("names", [("a.png", "a.ome.tif"), ("a.ome.tif", "a.tif"), ("a.OME.tif", "a.ome.tif")])
def test_names_of_ome(names: tuple[str, str], tmp_path: Path) -> None:
    image, labels = names
    save(tmp_path / "images" / image, np.zeros((3, 4), np.uint8))
    save(tmp_path / "labels" / labels, np.eye(3, 4, dtype=np.uint8))
    (record,) = load_label_images(tmp_path / "images", tmp_path / "labels")
    assert record["image_id"] == "a" and len(record["annotations"]) == 1
    save(tmp_path / "images/a.bmp", np.zeros((3, 4), np.uint8))
    with pytest.raises(DatasetError, match="has the same stem"):
        load_label_images(tmp_path / "images", tmp_path / "labels")


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", MASK.astype(np.uint8))
    save(tmp_path / "labels/a.tif", -MASK.astype(np.int16))
    with pytest.raises(DatasetError, match="a.tif: label image of .*int16; expected one channel of .* whole numbers"):
        load_label_images(tmp_path / "images", tmp_path / "labels")


def test_mask_files_overlap_and_keep_parts_and_holes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "x/images/x.png", np.zeros((*MASK.shape, 4), np.uint8))
    other = np.roll(MASK, 2, axis=0)
    for name, mask in {"a": MASK, "b": other}.items():
        save(tmp_path / f"x/masks/{name}.png", mask.astype(np.uint8) * 255)
    for name in ("._a.png", "Thumbs.db"):
        (tmp_path / "x/masks" / name).write_bytes(b"no image")
    (tmp_path / "y/masks").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        (record,) = load_mask_files(tmp_path, list_ids(tmp_path))
    assert (MASK & other).any() and np.array_equal(masks_of(record), [MASK, other])
    assert "left out 1 sub-folders that have no folder images" in caplog.text
    assert "left out 1 of 3 mask files, which are no PNG" in caplog.text


# ------------------------------------------------------------------------------------------------------ class folders


def test_class_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b/1.png", "b/0.png", "a/1.png", "other/1.png", "stray.png"):
        save(tmp_path / name, MASK.astype(np.uint8))
    with caplog.at_level(logging.WARNING):
        records = load_class_folders(tmp_path, ["b", "a"])
    assert [(record["image_id"], record["label"]) for record in records] == [("b/0.png", 0), ("b/1.png", 0), ("a/1.png", 1)]
    assert "left out 1 folders that are no class: other" in caplog.text
    assert "left out 1 images that lie in no class's folder" in caplog.text


def test_class_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="gone: no such folder; expected its sub-folders a, b"):
        load_class_folders(tmp_path / "gone", ["a", "b"])
    save(tmp_path / "a/0.png", MASK.astype(np.uint8))
    with pytest.raises(DatasetError, match="b: no such folder"):
        load_class_folders(tmp_path, ["a", "b"])


@pytest.mark.real_data
@pytest.mark.skipif(not (ROOT / "rosette/train").is_dir(), reason="no rosette")
def test_real_classes() -> None:
    classes = ["rosette", "non_rosette"]
    records = load_class_folders(ROOT / "rosette/train", classes)
    files = {name: len(list((ROOT / "rosette/train" / name).glob("*.jpg"))) for name in classes}
    assert [sum(record["label"] == label for record in records) for label in (0, 1)] == list(files.values())
    assert len({record["image_id"] for record in records}) == sum(files.values())
    assert all(Path(record["file_name"]).parent.name == classes[record["label"]] for record in records)
