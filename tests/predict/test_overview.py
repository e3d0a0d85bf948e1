"""Pictures of predictions, and the report of a job."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from cupre_d2.predict import overview
from cupre_d2.predict.canvas import Segmentation
from cupre_d2.predict.overview import colours, draw_cells, report, robust_z, write_picture
from cupre_d2.predict.sources import Page, find_pages


def page_of(folder: Path, image: np.ndarray) -> Page:
    tifffile.imwrite(folder / "a.tif", image)
    (page,) = find_pages([folder / "a.tif"]).pages
    return page


def picture(folder: Path, image: np.ndarray, labels: np.ndarray, longest: int) -> np.ndarray:
    with (folder / "picture.png").open("wb") as file:
        write_picture(page_of(folder, image), Segmentation(labels, None), file, ".png", longest)  # type: ignore[arg-type]
    return cv2.imread(str(folder / "picture.png"))[..., ::-1]


def test_cells_are_filled_and_outlined() -> None:
    labels = np.zeros((9, 9), np.uint32)
    labels[2:7, 2:7] = 1
    labels[2:7, 7:] = 2
    image = np.full((9, 9, 3), 100, np.uint8)
    drawn = draw_cells(image, labels)
    background, first, second = colours(3).astype(float)
    assert (drawn[labels == 0] == 100).all()
    assert (drawn[2, 2:7] == first).all() and (drawn[2, 7:] == second).all()
    np.testing.assert_allclose(drawn[4, 4], 0.3 * first + 70, atol=0.5)
    # Touching cells are told apart.
    assert (drawn[4, 6] == first).all() and (drawn[4, 7] == second).all()


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    labels = np.zeros((100, 150), np.uint32)
    drawn = picture(tmp_path, np.eye(100, 150, dtype=np.uint8) * 200, labels, 768)
    assert drawn.shape == (400, 600, 3)


@pytest.mark.parametrize("rows", [3, 10**6])
def test_large_images_are_reduced_by_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(overview, "STRIP_PIXELS", rows * 1003)
    monkeypatch.setattr(overview, "SHORT_SIDE", 1)
    image = np.random.default_rng(0).integers(0, 60000, (100, 1003)).astype(np.uint16)
    labels = np.zeros(image.shape, np.uint32)
    labels[30:60, 300:900] = 1
    page = page_of(tmp_path, image)
    samples, reduced = overview._reduced(page, labels, 10)
    blocks = [[image[y : y + 10, x : x + 10].mean() for x in range(0, 1003, 10)] for y in range(0, 100, 10)]
    np.testing.assert_allclose(samples[:, :, 0], blocks, atol=0.5)
    assert samples.dtype == np.uint16 and reduced.sum() == 3 * 60 and reduced[3:6, 30:90].all()
    assert picture(tmp_path, image, labels, 101).shape == (10, 101, 3)


def test_robust_z() -> None:
    values = np.array([10, 11, 9, 10, 12, 8, 40, np.nan])
    z = robust_z(values)
    # The median of the distances from 10 is 1.
    np.testing.assert_allclose(z[:7], (values[:7] - 10) / 1.4826)
    assert z[7] == 0
    np.testing.assert_allclose(robust_z(np.array([5.0, 5, 5, 9])), [0, 0, 0, 4 / 1.2533])
    assert (
        not robust_z(np.array([3.0, 3])).any() and not robust_z(np.array([np.nan])).any() and not len(robust_z(np.zeros(0)))
    )


@given(st.lists(st.integers(-1000, 1000), max_size=20), st.sampled_from([0.25, 2, 1024]), st.integers(-99, 99))
def test_robust_z_knows_no_units(values: list[int], factor: float, shift: int) -> None:
    z = robust_z(np.array(values, float))
    assert np.isfinite(z).all() and len(z) == len(values)
    np.testing.assert_allclose(robust_z(np.array(values, float) * factor + shift), z)


def entries(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Images of about 20 cells; number 3 has 500, number 4 is uncertain, number 5 is empty."""
    (folder / "report").mkdir()
    made = []
    for number in range(count):
        cells = {3: 500, 5: 0}.get(number, 20 + number % 3)
        score = {4: 0.31, 5: None}.get(number, 0.9 + number / 1000)
        summary = {"cells": cells, "mean_score": score, "median_area": None if number == 5 else 90.0 + number % 2}
        summary |= {"areas": [] if number == 5 else [0] * 25 + [cells]}
        name = f"image<{number}>"
        cv2.imwrite(str(folder / "report" / f"{name}.jpg"), np.full((8, 8, 3), number, np.uint8))
        made.append({"name": name, "file": f"/x/{name}.tif", "page": None, "height": 64, "width": 64, "summary": summary})
    return made


def test_report(tmp_path: Path) -> None:
    text = report(tmp_path, entries(tmp_path), ["broken.tif: cannot be read"])
    assert "12 images, 710 cells; 1 input failed" in re.sub(r"\s+", " ", text) and "broken.tif: cannot be read" in text
    uncertain, strange = re.findall(r"<h2>The (?:least certain|strangest) images</h2>(.*?)</section>", text, re.S)
    order = [int(number) for number in re.findall(r"<b>\d+\.</b> image&lt;(\d+)&gt;", uncertain)]
    assert order == [4, 0, 1, 2, 3, 6] and "mean score 0.310" in uncertain
    assert re.findall(r"<b>\d+\.</b> image&lt;(\d+)&gt;", strange) == ["3", "5"]
    assert text.count("data:image/jpeg;base64,") == 8 and text.count("<svg") == 2
    assert len(re.findall(r"<tr><td>image", text)) == 12
    # It loads nothing.
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text) and "http" not in text.replace("http-equiv", "")


def test_report_of_alike_images_and_of_none(tmp_path: Path) -> None:
    text = report(tmp_path, entries(tmp_path, 3), [])
    assert "The strangest images" not in text and "no image is." in text and "Failed" not in text
    assert "0 images, 0 cells; 1 input failed" in report(tmp_path, [], ["all of it"])
