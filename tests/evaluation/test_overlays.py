import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image, ImageDraw
from pycocotools import mask as mask_util

from cupre_d2.data.images import read_record
from cupre_d2.evaluation.overlays import CAPTION_HEIGHT, GAP, OverlayWriter, draw_overlay

HEIGHT, WIDTH = 96, 128
ZOOM = 4  # 384 / 96
NAME = "overlays_test"


def square(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def annotation(mask: np.ndarray, iscrowd: int = 0) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "bbox": [0, 0, 1, 1],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": rle,
        "category_id": 0,
        "iscrowd": iscrowd,
    }


def detected(masks: list[np.ndarray], scores: list[float]) -> Instances:
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.zeros(len(masks), 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(masks), dtype=torch.long),
        pred_masks=torch.from_numpy(np.array(masks, bool).reshape(-1, HEIGHT, WIDTH)),
    )


def panels(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two images of a picture, without captions."""
    below = picture[CAPTION_HEIGHT:]
    return below[:, : WIDTH * ZOOM], below[:, WIDTH * ZOOM + GAP :]


def painted(panel: np.ndarray) -> np.ndarray:
    """Where a panel of a black image is not black, at the image's own resolution: any pixel of the enlarged ones."""
    return panel.any(2).reshape(HEIGHT, ZOOM, WIDTH, ZOOM).any((1, 3))


BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def test_masks_are_painted_where_they_are() -> None:
    true_masks = [square(5, 10, 20), square(60, 40, 31)]
    found = [square(6, 12, 18), square(80, 5, 12)]
    picture = draw_overlay(BLACK, {"annotations": [annotation(m) for m in true_masks]}, detected(found, [0.9, 0.4]))
    assert picture.dtype == np.uint8
    assert picture.shape == (CAPTION_HEIGHT + HEIGHT * ZOOM, 2 * WIDTH * ZOOM + GAP, 3)
    left, right = panels(picture)
    assert (painted(left) == true_masks[0] | true_masks[1]).all()
    assert (painted(right) == found[0]).all()


def test_holes_stay_open_and_parts_together() -> None:
    ring_and_dot = square(20, 20, 40) & ~square(30, 30, 20) | square(100, 70, 6)
    left, _ = panels(draw_overlay(BLACK, {"annotations": [annotation(ring_and_dot)]}, None))
    assert (painted(left) == ring_and_dot).all()


def test_fill_is_translucent_and_each_cell_has_its_colour() -> None:
    grey = np.full_like(BLACK, 100)
    masks = [square(4 + 24 * (i % 5), 4 + 24 * (i // 5), 16) for i in range(15)]
    left, right = panels(draw_overlay(grey, {"annotations": [annotation(m) for m in masks]}, detected(masks, [0.9] * 15)))
    centres = [tuple(left[ZOOM * (12 + 24 * (i // 5)), ZOOM * (12 + 24 * (i % 5))]) for i in range(15)]
    assert len(set(centres)) == 15
    assert all(max(colour) < 200 and min(colour) > 40 for colour in centres)
    outline = left[ZOOM * 4, ZOOM * 12]
    assert outline.max() == 255
    assert (left == right).all()


def test_crowds_are_grey_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = capture_captions(monkeypatch)
    record = {"annotations": [annotation(square(5, 5, 30), iscrowd=1), annotation(square(70, 50, 20))]}
    left, _ = panels(draw_overlay(BLACK, record, detected([], [])))
    assert len(set(left[ZOOM * 20, ZOOM * 20].tolist())) == 1
    assert len(set(left[ZOOM * 60, ZOOM * 80].tolist())) > 1
    assert captions == ["ground truth: 1 cell", "prediction: 0 cells, score ≥ 0.5"]


def capture_captions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    captions: list[str] = []
    write = ImageDraw.ImageDraw.text

    def noting_text(draw: ImageDraw.ImageDraw, at: Any, text: str, **kwargs: Any) -> None:
        captions.append(text)
        write(draw, at, text, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting_text)
    return captions


def test_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = capture_captions(monkeypatch)
    mask = square(5, 5, 30)
    picture = draw_overlay(BLACK, {"annotations": [annotation(mask)] * 2}, detected([mask] * 3, [0.3, 0.25, 0.2]), 0.25)
    assert captions == ["ground truth: 2 cells", "prediction: 2 cells, score ≥ 0.25"]
    strip = picture[:CAPTION_HEIGHT]
    assert (strip < 100).any() and (strip[:, -20:] == 255).all()
    captions.clear()
    draw_overlay(BLACK, {}, None)
    assert captions == ["ground truth: 0 cells", "no prediction"]


def test_large_images_are_not_enlarged_and_small_ones_by_whole_numbers() -> None:
    assert draw_overlay(np.zeros((500, 400, 3), np.uint8), {}, None).shape == (500 + CAPTION_HEIGHT, 800 + GAP, 3)
    assert draw_overlay(np.zeros((383, 700, 3), np.uint8), {}, None).shape == (766 + CAPTION_HEIGHT, 2800 + GAP, 3)


def test_empty_predicted_mask_is_drawn_as_nothing() -> None:
    _, right = panels(draw_overlay(BLACK, {}, detected([square(0, 0, 0)], [0.9])))
    assert not right.any()


@pytest.fixture()
def dataset(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    records = []
    for number in range(9):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((HEIGHT, WIDTH), 10 * number, np.uint8)).save(path)
        annotations = [annotation(square(10, 10, 20))]
        records.append(
            {
                "file_name": str(path),
                "image_id": f"im{number}",
                "height": HEIGHT,
                "width": WIDTH,
                "annotations": annotations,
            }
        )
    DatasetCatalog.register(NAME, lambda: records)
    yield records
    DatasetCatalog.pop(NAME)
    MetadataCatalog.pop(NAME, None)


def run(writer: OverlayWriter, records: list[dict[str, Any]]) -> None:
    writer.reset()
    for record in records:
        writer.process([{"image_id": record["image_id"]}], [{"instances": detected([square(12, 12, 20)], [0.8])}])
    assert writer.evaluate() == {}


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "overlays" / NAME).iterdir()}


def test_writes_pictures_spread_over_the_data_set(dataset: list[dict[str, Any]], tmp_path: Path) -> None:
    run(OverlayWriter(NAME, 3, str(tmp_path / "out")), dataset)
    assert names(tmp_path / "out") == {"im0.png", "im4.png", "im8.png", "overview.png"}
    pictures = [np.asarray(Image.open(tmp_path / "out" / "overlays" / NAME / f"im{n}.png")) for n in (0, 4, 8)]
    overview = np.asarray(Image.open(tmp_path / "out" / "overlays" / NAME / "overview.png"))
    assert (overview == np.vstack(pictures)).all()
    image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    assert (pictures[1] == draw_overlay(image, dataset[4], detected([square(12, 12, 20)], [0.8]))).all()


def test_images_are_stretched_as_the_model_sees_them(dataset: list[dict[str, Any]], tmp_path: Path) -> None:
    deep = np.linspace(0, 60000, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(deep).save(dataset[0]["file_name"])
    run(OverlayWriter(NAME, 1, str(tmp_path / "out"), (10, 50)), dataset)
    picture = np.asarray(Image.open(tmp_path / "out" / "overlays" / NAME / "im0.png"))
    image = read_record(dataset[0], "RGB", (10, 50))
    assert (image != read_record(dataset[0], "RGB")).any()
    assert (picture == draw_overlay(image, dataset[0], detected([square(12, 12, 20)], [0.8]))).all()


def test_more_pictures_than_images(dataset: list[dict[str, Any]], tmp_path: Path) -> None:
    run(OverlayWriter(NAME, 50, str(tmp_path / "out")), dataset)
    assert len(names(tmp_path / "out")) == 10


def test_no_pictures(dataset: list[dict[str, Any]], tmp_path: Path) -> None:
    run(OverlayWriter(NAME, 0, str(tmp_path / "out")), dataset)
    assert not (tmp_path / "out").exists()


def test_image_ids_that_are_no_file_names(dataset: list[dict[str, Any]], tmp_path: Path) -> None:
    """Ids come from data files; they must not lead out of the folder nor replace each other's pictures."""
    for record, image_id in zip(dataset, ["../../out", "a/b", "a_b", "overview", 7], strict=False):
        record["image_id"] = image_id
    run(OverlayWriter(NAME, 9, str(tmp_path / "deep" / "down" / "out")), dataset)
    assert len(names(tmp_path / "deep" / "down" / "out")) == 10
    assert {path.parent.name for path in (tmp_path / "deep").rglob("*.png")} == {NAME}


def test_says_what_was_not_drawn(dataset: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(OverlayWriter(NAME, 3, str(tmp_path)), dataset[:1])
    assert names(tmp_path) == {"im0.png", "overview.png"}
    assert "2 of 3 overlays were not drawn" in caplog.text
