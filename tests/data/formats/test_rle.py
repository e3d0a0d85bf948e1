"""Instances from pixels, against slow and obvious ways, on generated and on real masks."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as mask_util
from scipy import ndimage

from cupre_d2.data.few_shot import get_records
from cupre_d2.data.formats.mask_images import load_binary_masks, read_labels, read_mask
from cupre_d2.data.formats.rle import labels_to_annotations, mask_to_annotation

ROOT = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def slow_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]


def check_annotation(annotation: dict, mask: np.ndarray) -> None:
    assert np.array_equal(mask_util.decode(annotation["segmentation"]).astype(bool), mask)
    assert annotation["bbox"] == slow_box(mask)
    assert mask_util.area(annotation["segmentation"]) == mask.sum()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_any_label_image(labels: np.ndarray) -> None:
    values = [value for value in np.unique(labels) if value]
    annotations = list(labels_to_annotations(labels))
    assert len(annotations) == len(values)
    for value, annotation in zip(values, annotations, strict=True):
        check_annotation(annotation, labels == value)
    single = mask_to_annotation(labels == 1)
    assert (single is None) == (1 not in values)
    if single:
        check_annotation(single, labels == 1)


def test_values_far_apart() -> None:
    labels = np.array([[0, 2**32 - 1], [7, 2**32 - 1]], np.uint32)
    first, second = labels_to_annotations(labels)
    check_annotation(first, labels == 7)
    check_annotation(second, labels == 2**32 - 1)


def test_components_connect_at_corners(tmp_path: Path) -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], np.uint8)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(mask).save(tmp_path / folder / "a.png")
    (record,) = load_binary_masks(tmp_path / "images", tmp_path / "masks", instances="components")
    first, second = record["annotations"]
    check_annotation(first, np.array([[1, 0, 0, 0], [0, 1, 0, 0]], bool))
    check_annotation(second, np.array([[0, 0, 0, 1], [0, 0, 0, 0]], bool))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_are_read_as_stored(tmp_path: Path, suffix: str) -> None:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    for name, pixels in {
        "bool": mask,
        "grey": mask * np.uint8(255),
        "rgba": np.dstack([mask * np.uint8(9)] * 3 + [np.full(mask.shape, 255, np.uint8)]),
    }.items():
        file = tmp_path / (name + suffix)
        if suffix == ".tif":
            tifffile.imwrite(file, pixels)
        else:
            Image.fromarray(pixels).save(file)
        assert np.array_equal(read_mask(file), mask), name
    assert np.array_equal(read_labels(tmp_path / f"bool{suffix}"), mask)


def real(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (ROOT / name).is_dir(), reason=f"no {name}")


def by_file(name: str) -> dict[str, dict]:
    return {record["image_id"]: record for record in get_records(name)}


@pytest.mark.real_data
@real("ctc/DIC-C2DH-HeLa")
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ctc_dic_c2dh_hela_01", "DIC-C2DH-HeLa/01"),
        ("ctc_phc_c2dl_psc_01", "PhC-C2DL-PSC/01"),
        ("ctc_fluo_n2dl_hela_02", "Fluo-N2DL-HeLa/02"),
    ],
)
def test_ctc_round_trip(name: str, folder: str) -> None:
    for image_id, record in by_file(name).items():
        labels = tifffile.imread(ROOT / f"ctc/{folder}_ST/SEG/man_seg{image_id.split('/t')[-1]}.tif")
        values = [value for value in np.unique(labels) if value]
        assert len(values) == len(record["annotations"])
        areas = [int((labels == value).sum()) for value in values]
        assert [mask_util.area(annotation["segmentation"]) for annotation in record["annotations"]] == areas
        assert [annotation["bbox"] for annotation in record["annotations"]] == [slow_box(labels == v) for v in values]


@pytest.mark.real_data
@real("sstem")
@pytest.mark.parametrize(("name", "masks"), [("sstem", "sstem/stack1"), ("tnbc", "tnbc"), ("bbbc005", "bbbc005")])
def test_binary_round_trip(name: str, masks: str) -> None:
    folders = {"sstem": "mitochondria", "tnbc": "GT_01", "bbbc005": "BBBC005_v1_ground_truth"}
    for image_id, record in by_file(name).items():
        (file,) = (ROOT / masks / folders[name]).glob(f"{image_id.split('/')[1]}.*")
        pixels = np.asarray(Image.open(file).convert("L")) > 0
        whole = np.zeros_like(pixels)
        for annotation in record["annotations"]:
            mask = mask_util.decode(annotation["segmentation"]).astype(bool)
            assert annotation["bbox"] == slow_box(mask) and not (whole & mask).any()
            whole |= mask
        assert np.array_equal(whole, pixels)
        if name != "bbbc005":
            assert len(record["annotations"]) == ndimage.label(pixels, np.ones((3, 3)))[1]


@pytest.mark.real_data
@real("bbbc038")
def test_mask_files_round_trip() -> None:
    records = [record for record in get_records("bbbc038_val") if len(record["annotations"]) < 60][:20]
    for record in records:
        files = sorted((ROOT / "bbbc038/stage1_train" / record["image_id"] / "masks").glob("*.png"))
        masks = [np.asarray(Image.open(file).convert("L")) > 0 for file in files]
        for annotation, mask in zip(record["annotations"], [mask for mask in masks if mask.any()], strict=True):
            check_annotation(annotation, mask)
