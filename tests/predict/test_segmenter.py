"""Images of any size through a network whose answer is known, and through one that is built of a config."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from cupre_d2.config import default_config
from cupre_d2.data.images import Contrast, read_image
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import CheckpointError, ConfigError, DatasetError
from cupre_d2.modeling.meta_arch.semantic_watershed import SemanticWatershed
from cupre_d2.modeling.watershed import Thresholds
from cupre_d2.predict import segmenter as module
from cupre_d2.predict.canvas import overlaps
from cupre_d2.predict.segmenter import Segmenter, TrainedRun, _agree, paint
from cupre_d2.predict.tiling import Window


class Bright(SemanticWatershed):
    """Cells are what is bright, if about as large as those it "was trained on": 14 pixels across."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.border, self.thresholds = "inner", Thresholds()
        self.seen: list[tuple[int, int]] = []

    def probabilities(self, batched_inputs: list[dict[str, Any]]):  # noqa: ANN201
        self.batches = len(batched_inputs)
        for one in batched_inputs:
            image = one["image"].float().numpy() / 255
            self.seen.append(image.shape[1:])
            yield np.stack([1 - image[0], image[0], 0 * image[0]])


def bright(**options: Any) -> Segmenter:
    cfg = default_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST = 0
    model = TrainedRun(cfg, Bright(), "0", cell_diameter=14.0, heights=(64, 64, 64), widths=(64, 64, 64))
    return Segmenter(model, **options)


def discs(height: int, width: int, radius: float = 7, step: int = 20) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows % step - step / 2 + 0.5, columns % step - step / 2 + 0.5) < radius


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "bool"])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_tiles_give_what_the_whole_gives(dtype: str, channels: int) -> None:
    cells = discs(170, 210)
    image = cells if dtype == "bool" else (cells * 100 + 20).astype(dtype)
    if channels:
        image = np.repeat(image[:, :, None], channels, axis=2)
    found = bright(tile=70, batch=3)(image)
    whole = bright(tile=500)(image)
    assert np.array_equal(np.asarray(found.labels) > 0, cells) and len(found.table) == len(whole.table) > 80
    one, other, shared = overlaps(np.asarray(found.labels), np.asarray(whole.labels))
    assert len(one) == len(found.table) and shared.sum() == cells.sum()
    assert found.table["edge"].sum() == whole.table["edge"].sum() and not found.table["stitched"].any()


def test_contrast_is_the_pages_and_not_the_tiles() -> None:
    """A tile without a cell has noise, which would be stretched to cells."""
    image = np.random.default_rng(0).integers(0, 10, (200, 200)).astype(np.uint16)
    image[:60, :60][discs(60, 60)] = 1000
    assert len(bright(tile=70)(image).table) == 9


def test_contrast_of_a_large_page_is_estimated_on_parts_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).gamma(2.0, 200, (600, 500)).astype(np.uint16)
    segmenter = bright()
    page = module._Array.of(image, None)
    exact = segmenter._contrast(page).limits[0]
    monkeypatch.setattr(module, "MEASURED_PIXELS", 2**16)
    estimated = segmenter._contrast(page).limits[0]
    assert estimated != exact and np.allclose(np.array(estimated, float), np.array(exact, float), rtol=0.2)
    windows = module._spread((600, 500), 32, 64)
    assert len(windows) == 64 and max(w.bottom for w in windows) == 600 and max(w.right for w in windows) == 500
    assert module._spread((20, 500), 32, 4) == [Window(0, 0, 20, 32), Window(0, 468, 20, 500)]


def test_contrast_of_an_image_and_of_its_parts(tmp_path: Path) -> None:
    """As the reader has it; dyes each on its own."""
    import tifffile

    image = np.random.default_rng(0).integers(0, 4000, (30, 40, 3)).astype(np.uint16) // np.array([1, 2, 4], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    for channels in (None, (2, 0, 1)):
        samples = image if channels is None else image[:, :, channels]
        contrast = Contrast.of(samples, 16, (0.1, 99.9), "a.tif", dyes=channels is not None)
        expected = read_image(tmp_path / "a.tif", "BGR", channels=channels)
        assert np.array_equal(contrast(samples, "BGR"), expected)
        assert np.array_equal(contrast(samples[5:9, 7:20], "BGR"), expected[5:9, 7:20])
        assert len(contrast.limits) == (1 if channels is None else 3)


def test_cells_of_another_size_are_resized_to_those_it_knows() -> None:
    image = (discs(240, 240, radius=14, step=40) * 200).astype(np.uint8)
    segmenter = bright(tile=80)
    found = segmenter(image, diameter=28)
    assert len(found.table) == 36 and found.labels.shape == image.shape
    # Tiles of 80 of the network's pixels are 160 of the image.
    assert max(max(shape) for shape in segmenter.model.model.seen) <= 80
    assert found.table["area"].median() == pytest.approx(np.pi * 14**2, rel=0.1)
    page = module._Array.of(image, None)
    assert segmenter._estimate(page, segmenter._contrast(page)) == pytest.approx(28, rel=0.1)
    assert len(segmenter(image, diameter="auto").table) == 36
    assert segmenter(np.zeros_like(image), diameter="auto").table.empty


def test_images_are_enlarged_as_those_of_the_training() -> None:
    segmenter = bright()
    segmenter.model.cfg.INPUT.MIN_SIZE_TEST, segmenter.model.cfg.INPUT.MAX_SIZE_TEST = 128, 200
    segmenter(np.zeros((64, 64), np.uint8))
    segmenter(np.zeros((100, 50), np.uint8))
    assert segmenter.model.model.seen == [(128, 128), (200, 100)]
    # Where nothing is known of them, as evaluation would enlarge this very image.
    segmenter = Segmenter(replace(segmenter.model, heights=None, widths=None))
    segmenter(np.zeros((100, 50), np.uint8))
    assert segmenter.model.model.seen[-1] == (200, 100)


@pytest.mark.parametrize(
    "image", [np.zeros((0, 5)), np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((4, 4), complex), np.full((3, 3), "a")]
)
def test_what_is_no_image(image: np.ndarray) -> None:
    with pytest.raises(DatasetError, match=r"^image: an array of shape \(.*; expected HxW or HxWxC of numbers$"):
        bright()(image)


def test_two_channels_and_floats_without_a_number() -> None:
    with pytest.raises(DatasetError, match="image: 2 channels; expected grey, RGB"):
        bright()(np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(DatasetError, match="image: no value is finite"):
        bright()(np.full((4, 4), np.nan))
    assert bright()(np.zeros((1, 1), np.uint8)).labels.tolist() == [[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diameter": 0}, "diameter 0: expected pixels, at least 1, or auto"),
        ({"diameter": "big"}, "diameter 'big': expected"),
        ({"tile": 10}, "tile 10: expected at least 64, or 0 to choose"),
        ({"batch": -1}, "batch -1: expected at least 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bright(**options)


def test_a_model_that_does_not_know_its_cells() -> None:
    with pytest.raises(ConfigError, match="diameter 20: the model does not know the diameter"):
        Segmenter(replace(bright().model, cell_diameter=None))(np.zeros((4, 4)), diameter=20)


def test_augmentation_sees_each_tile_four_times_and_finds_the_same_where_all_agree() -> None:
    image = (discs(90, 130) * 200).astype(np.uint8)
    segmenter = bright(tile=64, tta=True)
    found, plain = segmenter(image), bright(tile=64)(image)
    assert np.array_equal(found.labels, plain.labels)
    seen = segmenter.model.model.seen
    assert {(h, w) for h, w in seen} == {(w, h) for h, w in seen} and len(seen) % 4 == 0


def test_views_that_do_not_agree() -> None:
    import pandas as pd

    def view(*cells: tuple[int, float]) -> tuple[np.ndarray, pd.DataFrame]:
        labels = np.zeros((1, 40), np.int32)
        for number, (start, _) in enumerate(cells, start=1):
            labels[0, start : start + 6] = number
        return labels, pd.DataFrame({"score": [score for _, score in cells], "category": [0] * len(cells)})

    labels, table = _agree(
        [view((0, 0.9), (20, 0.8)), view((1, 0.7), (30, 1.0)), view((30, 1.0)), view((30, 0.8), (0, 0.6))], 0.5
    )
    # The second was seen once in four, the first in three of them, the last too.
    assert table["score"].tolist() == pytest.approx([0.55, 0.7]) and labels[0, [0, 21, 31]].tolist() == [1, 0, 2]


def detections(count: int, height: int, width: int, seed: int = 0) -> Instances:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-3, [width, height], (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 30, (count, 2))], 1).astype(np.float32)
    found = Instances((height, width), pred_boxes=Boxes(torch.from_numpy(boxes)))
    found.pred_boxes.clip((height, width))
    found.scores = torch.from_numpy(rng.choice(20, count) / 20)
    found.pred_classes = torch.from_numpy(rng.integers(0, 3, count))
    found.pred_masks = torch.from_numpy(rng.random((count, 1, 28, 28), np.float32)).round()
    found.pred_masks[:, :, 5:25, 5:25] = 1
    return found


def test_painting_as_the_slow_and_obvious_way() -> None:
    found = detections(80, 60, 90)
    masks = paste_masks_in_image(found.pred_masks[:, 0], found.pred_boxes, (60, 90)).numpy()
    expected, rows = np.zeros((60, 90), int), []
    for index in sorted(range(80), key=lambda one: -found.scores[one]):
        free = masks[index] & (expected == 0)
        if free.sum() > masks[index].sum() / 2:
            rows.append(index)
            expected[free] = len(rows)
    labels, table = paint(found, 60, 90)
    assert np.array_equal(labels, expected) and 10 < len(rows) < 80
    assert table["score"].tolist() == found.scores[rows].tolist()
    assert table["category"].tolist() == found.pred_classes[rows].tolist()
    twice = paint(found, 120, 180)[0]
    assert (twice[::2, ::2] > 0).mean() == pytest.approx((labels > 0).mean(), abs=0.05)


def test_two_thousand_detections_never_have_a_mask_of_the_window_each() -> None:
    import tracemalloc

    found = detections(2000, 512, 512)
    tracemalloc.start()
    labels, table = paint(found, 512, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels.max() == len(table) > 200 and peak < 30 * 2**20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline of one stage, with weights as they are drawn."""
    from tests.conftest import SLIM

    folder = tmp_path_factory.mktemp("run")
    opts = [str(item) for pair in SLIM.items() for item in pair] + ["OUTPUT_DIR", str(folder)]
    _, (stage,) = load_stages("configs/quickstart/finetune_cells_5pct.yaml", opts)
    stage.folder.mkdir()
    (stage.folder / "config.yaml").write_text(stage.cfg.dump())
    torch.save({"model": build_model(stage.cfg).state_dict()}, stage.final_checkpoint)
    (folder / "results.json").write_text(f'{{"stages": [{{"name": "x", "folder": "{stage.folder.name}"}}]}}')
    return folder


def test_a_trained_run_by_its_folder_its_stage_and_its_checkpoint(run: Path) -> None:
    (checkpoint,) = run.glob("*/model_final.pth")
    models = [TrainedRun.load(path, "cpu") for path in (run, checkpoint.parent, checkpoint)]
    assert len({one.fingerprint for one in models}) == 1 and not models[0].model.training
    assert models[0].cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.5


def test_a_detector_finds_in_windows_as_many_as_their_size_allows(run: Path) -> None:
    """With scores of chance, everything that the limits let through."""
    model = TrainedRun.load(run, "cpu")
    network = model.model
    for predictor in network.roi_heads.box_predictor:
        predictor.test_score_thresh = 0.0
    network.roi_heads.box_predictor[-1].test_topk_per_image = 5
    model.cfg.defrost()
    model.cfg.INPUT.MIN_SIZE_TEST = 0
    segmenter = Segmenter(model, tile=128)
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    counts = []
    inference = network.inference

    def counting(inputs: list, **options: Any) -> list:
        found = inference(inputs, **options)
        counts.extend(len(one) for one in found)
        return found

    network.inference = counting
    found = segmenter(image)
    segmenter(image[:64, :64])
    # Trained on 64 pixels: four times as many in a tile of 128.
    assert counts == [20, 5] and network.roi_heads.box_predictor[-1].test_topk_per_image == 5
    assert found.labels.max() == len(found.table)


def test_no_model(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no model; expected a model package or the folder"):
        Segmenter(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(CheckpointError, match="results.json: broken"):
        Segmenter(tmp_path)
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(CheckpointError, match="config.yaml: no config of a stage"):
        Segmenter(tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text("a: [b")
    with pytest.raises(CheckpointError, match="config.yaml: no config of a stage"):
        Segmenter(tmp_path / "model_final.pth")
    model = TrainedRun.load(run, "cpu")
    with pytest.raises(CheckpointError, match="GeneralizedRCNN: gives no masks"):
        Segmenter(replace(model, model=torch.nn.Identity()))
