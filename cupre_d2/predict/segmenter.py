"""A trained network applied to images of any size."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import nn

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.config import default_config
from cupre_d2.data.image_files import Raster
from cupre_d2.data.images import Contrast, choose_channels
from cupre_d2.engine.single_phase import build_network
from cupre_d2.errors import CheckpointError, ConfigError, DatasetError
from cupre_d2.migration import migrate
from cupre_d2.modeling.meta_arch.semantic_watershed import SemanticWatershed
from cupre_d2.modeling.watershed import resize, segment
from cupre_d2.predict.canvas import LabelCanvas, Segmentation, overlaps
from cupre_d2.predict.tiling import Window, tiles

logger = logging.getLogger(__name__)

# Network's pixels. Tiles of this side spend little on halos; those a network was trained at may be larger, memory less.
LARGE_TILE, SMALL_TILE = 1536, 256
SMALL_HALO = 32
# A halo's width in cells: the whole of a cell across a seam, and some of what is around it.
HALO_CELLS = 1.5
# Bytes that a pixel takes for each parameter of the network, in the worst case. Measured: 235 bytes a pixel of the mini
# detector's 5 million parameters, 9,900 of ResNeSt-200's 123 million in an image as full of cells as the limits let it be.
BYTES_A_PIXEL_AND_PARAMETER = 80e-6
LARGEST_BATCH = 8
# Pixels that contrast is measured on. Those of a larger page are taken from this many parts of it.
MEASURED_PIXELS, MEASURED_PARTS = 2**24, 64
# Tiles that a diameter is estimated on, and the factors of the size at which cells are looked for.
ESTIMATE_TILES, ESTIMATE_FACTORS = 4, (1.0, 0.5, 2.0)
# Axes that an image is flipped along, or turned about, for test-time augmentation; each is its own inverse.
VIEWS = {
    "as it is": lambda image: image,
    "left to right": lambda image: image[:, ::-1],
    "top to bottom": lambda image: image[::-1],
    "transposed": lambda image: image.swapaxes(0, 1),
}

Cells = tuple[np.ndarray, pd.DataFrame]


class Model(Protocol):
    """A trained network with what is known of its training images; a model package is one.

    Attributes:
        cfg: of the network and its mapper, its thresholds the ones to predict with.
        model: the network, for evaluation, on `cfg.MODEL.DEVICE`.
        cell_diameter: the median, pixels of the training images; None where it is not known.
        heights, widths: smallest, median and largest of the training images; None where not known.
        channels: of the image files that were read; None for all.
        fingerprint: other weights or thresholds have another.
    """

    @property
    def cfg(self) -> CfgNode: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def cell_diameter(self) -> float | None: ...

    @property
    def heights(self) -> tuple[int, int, int] | None: ...

    @property
    def widths(self) -> tuple[int, int, int] | None: ...

    @property
    def channels(self) -> tuple[int, ...] | None: ...

    @property
    def fingerprint(self) -> str: ...


class Page(Protocol):
    """An image to segment: `sources.Page`, or an array.

    Attributes:
        reading: "percentiles", where other ones than the model's are wanted.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def bits(self) -> int: ...

    @property
    def channels(self) -> tuple[int, ...] | None: ...

    @property
    def reading(self) -> Mapping[str, Any]: ...

    def read(self, window: Window) -> np.ndarray:
        """HxWx1 or HxWx3 in the file's type."""


@dataclass(frozen=True)
class _Array:
    """An image in memory as a page."""

    samples: np.ndarray
    bits: int
    channels: tuple[int, ...] | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.samples.shape[:2]
        return height, width

    def __str__(self) -> str:
        return "image"

    def read(self, window: Window) -> np.ndarray:
        return self.samples[window.slices]

    @classmethod
    def of(cls, image: np.ndarray, channels: tuple[int, ...] | None) -> "_Array":
        samples = image[..., None] if image.ndim == 2 else image
        if samples.ndim != 3 or not samples.size or samples.dtype.kind not in "buif":
            raise DatasetError(f"image: an array of shape {image.shape} of {image.dtype}; expected HxW or HxWxC of numbers")
        # What the model was trained on, of an image that has it.
        chosen = channels if channels and len(channels) < samples.shape[2] > max(channels) else None
        bits = 8 * samples.dtype.itemsize
        return cls(choose_channels(Raster(samples, bits, alpha=False), chosen, "image"), bits, chosen)


@dataclass(frozen=True)
class TrainedRun:
    """The network that a training left, without a package: nothing is known of its images. See Model."""

    cfg: CfgNode
    model: nn.Module
    fingerprint: str
    cell_diameter: float | None = None
    heights: tuple[int, int, int] | None = None
    widths: tuple[int, int, int] | None = None
    channels: tuple[int, ...] | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "", config_file: str | os.PathLike[str] = "") -> "TrainedRun":
        """
        Args:
            path: the folder of a finished pipeline, that of a stage, or a stage's checkpoint.
            device: of torch; "" for the GPU where there is one.
            config_file: of the stage, whole; "" for the config.yaml beside the checkpoint.

        Raises:
            CheckpointError: there is no such, or the checkpoint is not that of its config.
        """
        checkpoint = _find_checkpoint(Path(path).expanduser())
        file = Path(config_file).expanduser() if config_file else checkpoint.parent / "config.yaml"
        cfg = default_config()
        try:
            cfg.merge_from_other_cfg(CfgNode(migrate(yaml.safe_load(file.read_text()), str(file))))
        except (OSError, yaml.YAMLError, AttributeError, KeyError, ValueError, AssertionError) as error:
            raise CheckpointError(f"{file}: no config of a stage ({' '.join(str(error).split())})") from error
        # Evaluation by AP wants each detection; nobody else wants those the network does not believe in.
        keys = cfg.MODEL.ROI_HEADS
        keys.SCORE_THRESH_TEST = max(keys.SCORE_THRESH_TEST, cfg.TEST.LABELS.SCORE_THRESHOLD)
        # A job may go on on another device.
        cfg.MODEL.DEVICE = ""
        digest = hashlib.sha256(cfg.dump().encode())
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        cfg.freeze()
        model = build_network(cfg).eval()
        report = load_initial_weights(model, str(checkpoint))
        if untrained := [*report.missing, *(key for key, _, _ in report.mismatched)]:
            raise CheckpointError(f"{checkpoint}: no weights for {len(untrained)} tensors of the model, as {untrained[0]}")
        with checkpoint.open("rb") as content:
            while block := content.read(2**24):
                digest.update(block)
        return cls(cfg, model, digest.hexdigest()[:16])


def _find_checkpoint(path: Path) -> Path:
    if path.is_file():
        return path
    results = path / "results.json"
    if results.is_file():
        try:
            last = json.loads(results.read_text())["stages"][-1]
            path = path / (last.get("folder") or last["name"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{results}: broken ({error!r}); expected the results of a finished pipeline") from error
    checkpoint = path / "model_final.pth"
    if not checkpoint.is_file():
        raise CheckpointError(f"{path}: no model; expected a model package or the folder of a finished training")
    return checkpoint


def load_model(path: str | os.PathLike[str], device: str = "", config_file: str | os.PathLike[str] = "") -> Model:
    """A model package, or the folder or checkpoint of a finished training.

    Args:
        device, config_file: see `TrainedRun.load`.

    Raises:
        CheckpointError: neither, or one that cannot be used.
    """
    folder = Path(path).expanduser()
    if not config_file and any((one / "package.yaml").is_file() for one in (folder, folder / "model_package")):
        from cupre_d2.predict.package import load_package

        return load_package(str(folder), device)
    return TrainedRun.load(folder, device, config_file)


class Segmenter:
    """Finds the cells of images of any size, tile by tile.

    What a tile shows does not depend on the others: contrast is the page's, and the most cells an image may have are the
    most a tile may have for each area of a training image. Images are enlarged as evaluation enlarges those that the model
    was trained on.

    Args:
        model: a model package, a finished training (see `load_model`), or a loaded model.
        device: of torch; "" for the GPU where there is one.
        diameter: of the cells of the images, pixels, which are then resized so that the cells are as large as those the
            model was trained on; "auto" estimates it of each image, None takes images as they are.
        tile: longest side of a tile, pixels of the image as the network gets it; 0 to choose by what the model was trained
            on and the memory that is free.
        batch: tiles that the network gets at a time; 0 to choose.
        tta: test-time augmentation: each tile is also seen flipped and transposed, and a cell's score is the mean over these
            views, 0 where it is not found; four times the work.
        folder: for temporary files of 4 bytes a pixel; None for the system's.

    Raises:
        CheckpointError: no model, or none that segments.
        ConfigError: a value that cannot be.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        *,
        device: str = "",
        diameter: float | str | None = None,
        tile: int = 0,
        batch: int = 0,
        tta: bool = False,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.model: Model = load_model(model, device) if isinstance(model, str | os.PathLike) else model
        cfg, network = self.model.cfg, self.model.model
        if not (isinstance(network, SemanticWatershed) or (isinstance(network, GeneralizedRCNN) and cfg.MODEL.MASK_ON)):
            raise CheckpointError(
                f"{cfg.MODEL.META_ARCHITECTURE}: gives no masks; expected GeneralizedRCNN or SemanticWatershed"
            )
        self._check_diameter(diameter)
        for name, value, least in (("tile", tile, 64), ("batch", batch, 1)):
            if value and value < least:
                raise ConfigError(f"{name} {value}: expected at least {least}, or 0 to choose")
        self.diameter = diameter
        self.tta = tta
        self._folder = folder
        # What evaluation does to the training images, on average.
        heights, widths = self.model.heights, self.model.widths
        self._trained_shape = (heights[1], widths[1]) if heights and widths else None
        self._tile = tile or self._choose_tile()
        self._batch = batch or self._choose_batch()

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    def __call__(self, image: np.ndarray | Page, diameter: float | str | None = None) -> Segmentation:
        """The cells of an image.

        Args:
            image: HxW or HxWxC of any type of numbers, C being 1, 3, or what holds the channels the model was trained on; or
                a page of a file.
            diameter: instead of the segmenter's.

        Raises:
            DatasetError: an image that cannot be read or is none.
            ConfigError: a diameter that cannot be.
        """
        page = _Array.of(image, self.model.channels) if isinstance(image, np.ndarray) else image
        self._check_diameter(diameter)
        diameter = diameter or self.diameter
        contrast = self._contrast(page)
        if diameter == "auto":
            diameter = self._estimate(page, contrast)
        scale = self._scale(page.shape, diameter)
        size = max(round(self._tile / scale), 3)
        canvas = LabelCanvas(page.shape, self._folder)
        cut = tiles(page.shape, size, min(self._halo(diameter, scale), (size - 1) // 2))
        while cut:
            group, cut = cut[: self._batch], cut[self._batch :]
            images = [contrast(page.read(tile.window), self.model.cfg.INPUT.FORMAT) for tile in group]
            for tile, (labels, table) in zip(group, self.predict_windows(images, scale), strict=True):
                canvas.add(tile.window, tile.core, labels, table)
        return canvas.finish()

    def predict_window(self, image: np.ndarray, scale: float = 1.0) -> Cells:
        """See `predict_windows`."""
        return self.predict_windows([image], scale)[0]

    def predict_windows(self, images: Sequence[np.ndarray], scale: float = 1.0) -> list[Cells]:
        """The cells of images that the network takes in one go.

        Args:
            images: HxWx3 uint8 each, in the order INPUT.FORMAT.
            scale: that they are enlarged by for the network.

        Returns:
            Of each the label image, H x W int32, 0 or k + 1 for row k of the table: "score", "category".
        """
        if not self.tta:
            return self._predict(images, scale)
        views = [
            [(view(labels), table) for labels, table in self._predict([view(image) for image in images], scale)]
            for view in VIEWS.values()
        ]
        return [_agree(cells, self._score_threshold) for cells in zip(*views, strict=True)]

    def _predict(self, images: Sequence[np.ndarray], scale: float) -> list[Cells]:
        inputs = [_to_input(image, scale) for image in images]
        try:
            with torch.inference_mode(), _limits_for(self.model.model, self._share_of_a_training_image(inputs)):
                return list(self._segment(inputs))
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
        logger.warning(f"batch {len(images)}: out of memory; going on with half of it")
        self._batch = half = (len(images) + 1) // 2
        return [*self._predict(images[:half], scale), *self._predict(images[half:], scale)]

    def _segment(self, inputs: list[dict[str, Any]]) -> Iterator[Cells]:
        network: Any = self.model.model
        if isinstance(network, SemanticWatershed):
            for probabilities, one in zip(network.probabilities(inputs), inputs, strict=True):
                found = segment(probabilities, network.border, network.thresholds)
                labels, scores = resize(*found, one["height"], one["width"])
                yield labels, pd.DataFrame({"score": scores, "category": np.zeros(len(scores), np.int64)})
        else:
            for instances, one in zip(network.inference(inputs, do_postprocess=False), inputs, strict=True):
                yield paint(instances, one["height"], one["width"])

    @property
    def _score_threshold(self) -> float:
        cfg = self.model.cfg.MODEL
        watershed = isinstance(self.model.model, SemanticWatershed)
        return cfg.SEMANTIC_WATERSHED.SCORE_THRESHOLD if watershed else cfg.ROI_HEADS.SCORE_THRESH_TEST

    def _check_diameter(self, diameter: float | str | None) -> None:
        if diameter is None:
            return
        if diameter != "auto" and (isinstance(diameter, str) or not 1 <= diameter < 1e5):
            raise ConfigError(f"diameter {diameter!r}: expected pixels, at least 1, or auto")
        if self.model.cell_diameter is None:
            raise ConfigError(f"diameter {diameter}: the model does not know the diameter of the cells it was trained on")

    def _scale(self, shape: tuple[int, int], diameter: float | str | None) -> float:
        """Network's pixels for a pixel of the image."""
        cfg = self.model.cfg.INPUT
        height, width = self._trained_shape or shape
        scale = 1.0
        if cfg.MIN_SIZE_TEST:
            new, _ = T.ResizeShortestEdge.get_output_shape(height, width, cfg.MIN_SIZE_TEST, cfg.MAX_SIZE_TEST)
            scale = new / height
        if isinstance(diameter, int | float) and self.model.cell_diameter:
            scale *= self.model.cell_diameter / diameter
        return scale

    def _halo(self, diameter: float | str | None, scale: float) -> int:
        """Pixels of the image."""
        known = diameter if isinstance(diameter, int | float) else self.model.cell_diameter
        wanted = HALO_CELLS * known * scale if known else self._tile / 8
        return round(min(max(wanted, SMALL_HALO), self._tile / 4) / scale)

    def _training_side(self) -> int:
        """The longest of the images the network was trained on, its pixels."""
        cfg = self.model.cfg.INPUT
        if self.model.heights and self.model.widths:
            return round(max(self.model.heights[1], self.model.widths[1]) * self._scale((1, 1), None))
        return max(cfg.MIN_SIZE_TRAIN)

    def _choose_tile(self) -> int:
        side = max(self._training_side(), LARGE_TILE)
        while side > SMALL_TILE and self._bytes_of_a_tile(side) > self._free_memory() / 2:
            side = side * 3 // 4
        return side

    def _choose_batch(self) -> int:
        if self.model.cfg.MODEL.DEVICE == "cpu":
            # Its cores are busy with one.
            return 1
        return int(np.clip(self._free_memory() / 2 / self._bytes_of_a_tile(self._tile), 1, LARGEST_BATCH))

    def _bytes_of_a_tile(self, side: int) -> float:
        parameters = sum(parameter.numel() for parameter in self.model.model.parameters())
        return max(BYTES_A_PIXEL_AND_PARAMETER * parameters, 100) * side**2

    def _free_memory(self) -> int:
        if self.model.cfg.MODEL.DEVICE != "cpu":
            return torch.cuda.mem_get_info()[0]
        (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
        return 1024 * int(line.split()[1])

    def _share_of_a_training_image(self, inputs: list[dict[str, Any]]) -> float:
        """By area, of the largest; limits on the number of cells are meant for a training image."""
        largest = max(one["image"].shape[1] * one["image"].shape[2] for one in inputs)
        if self._trained_shape:
            reference = self._trained_shape[0] * self._trained_shape[1] * self._scale((1, 1), None) ** 2
        else:
            reference = self._training_side() ** 2
        return largest / reference

    def _contrast(self, page: Page) -> Contrast:
        """Of the whole page; where that is large, estimated on parts of it."""
        percentiles = page.reading.get("percentiles", self.model.cfg.INPUT.PERCENTILES)
        height, width = page.shape
        whole = Window(0, 0, height, width)
        if height * width <= MEASURED_PIXELS:
            samples = page.read(whole)
        else:
            side = int((MEASURED_PIXELS / MEASURED_PARTS) ** 0.5)
            parts = [page.read(window) for window in _spread(page.shape, side, MEASURED_PARTS)]
            samples = np.concatenate([part.reshape(-1, 1, part.shape[2]) for part in parts])
        dyes = page.channels is not None and len(page.channels) == 3
        return Contrast.of(samples, page.bits, percentiles, str(page), dyes=dyes, colours=not dyes)

    def _estimate(self, page: Page, contrast: Contrast) -> float | None:
        """The median diameter of cells of some tiles, pixels; of the sizes at which these are looked at, the one counts at
        which most pixels are in cells, by their scores. None where no cell is found.
        """
        base = self._scale(page.shape, None)
        windows = _spread(page.shape, max(round(self._tile / base / max(ESTIMATE_FACTORS)), 1), ESTIMATE_TILES)
        images = [contrast(page.read(window), self.model.cfg.INPUT.FORMAT) for window in windows]
        best, diameter = 0.0, None
        for factor in ESTIMATE_FACTORS:
            found = [self._predict([image], base * factor)[0] for image in images]
            areas = np.concatenate([np.bincount(labels.ravel(), minlength=len(table) + 1)[1:] for labels, table in found])
            covered = float(np.dot(areas, np.concatenate([table["score"] for _, table in found])))
            if covered > best:
                best, diameter = covered, float(np.median(2 * np.sqrt(areas / np.pi)))
        logger.info(f"{page}: cells of {diameter:.3g} pixels" if diameter else f"{page}: no cell to estimate a diameter of")
        return diameter


def _spread(shape: tuple[int, int], side: int, count: int) -> list[Window]:
    """At most `count` windows of a page, `side` or less long, evenly spread over it."""
    across = int(count**0.5)
    starts = []
    for length in shape:
        number = min(across, -(-length // side))
        starts.append(np.linspace(0, max(length - side, 0), number).astype(int).tolist())
    return [Window(y, x, min(y + side, shape[0]), min(x + side, shape[1])) for y in starts[0] for x in starts[1]]


def _to_input(image: np.ndarray, scale: float) -> dict[str, Any]:
    height, width = image.shape[:2]
    size = max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    resized = image if size == (height, width) else T.ResizeTransform(height, width, *size).apply_image(image)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return {"image": tensor, "height": height, "width": width}


@contextmanager
def _limits_for(network: nn.Module, share: float) -> Iterator[None]:
    """Within, a detector's limits on proposals and detections are as many times as high; not lower than they are."""
    if not isinstance(network, GeneralizedRCNN):
        yield
        return
    generator: Any = network.proposal_generator
    predictors: Any = network.roi_heads.box_predictor
    places: list[tuple[dict, Any]] = [(generator.pre_nms_topk, False), (generator.post_nms_topk, False)]
    for one in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        places.append((vars(one), "test_topk_per_image"))
    before = [holder[key] for holder, key in places]
    try:
        for (holder, key), number in zip(places, before, strict=True):
            holder[key] = round(number * max(share, 1.0))
        yield
    finally:
        for (holder, key), number in zip(places, before, strict=True):
            holder[key] = number


def paint(instances: Instances, height: int, width: int) -> Cells:
    """Detections as a label image: by descending score each takes the pixels of its mask that are free.

    One that finds half of its pixels or less free is a duplicate, and left out. Masks are only ever made in their boxes.

    Args:
        instances: at the network's size, with pred_boxes, scores, pred_classes and pred_masks, N x 1 x M x M from 0 to 1.
        height, width: of the label image.

    Returns:
        See `Segmenter.predict_windows`.
    """
    labels = np.zeros((height, width), np.int32)
    ratio = np.array([width, height] * 2) / np.array([instances.image_size[1], instances.image_size[0]] * 2)
    boxes = instances.pred_boxes.tensor.cpu().numpy().astype(np.float64) * ratio
    boxes = boxes.clip(0, (width, height, width, height))
    scores = instances.scores.cpu().numpy()
    masks = instances.pred_masks[:, 0].float().cpu().numpy()
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        left, top, mask = _paste(masks[index], boxes[index], height, width)
        place = labels[top : top + mask.shape[0], left : left + mask.shape[1]]
        free = mask & (place == 0)
        if 2 * np.count_nonzero(free) > np.count_nonzero(mask):
            kept.append(index)
            place[free] = len(kept)
    categories = instances.pred_classes.cpu().numpy()
    return labels, pd.DataFrame({"score": scores[kept], "category": categories[kept].astype(np.int64)})


def _paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> tuple[int, int, np.ndarray]:
    """A mask of M x M shares of its box as pixels: left, top, and whether each is the cell's.

    Interpolated between the centres of the mask's fields, nothing being beyond them, as Detectron2's `paste_masks_in_image`
    does it.
    """
    x0, y0, x1, y1 = box
    left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
    right, bottom = min(int(np.ceil(x1)) + 1, width), min(int(np.ceil(y1)) + 1, height)
    if x1 <= x0 or y1 <= y0:
        return left, top, np.zeros((0, 0), bool)
    fields = np.arange(len(mask))
    rows = (np.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * len(mask) - 0.5
    columns = (np.arange(left, right) + 0.5 - x0) / (x1 - x0) * len(mask) - 0.5
    by_row, by_column = ((1 - np.abs(where[:, None] - fields)).clip(0) for where in (rows, columns))
    return left, top, by_row @ mask @ by_column.T >= 0.5


def _agree(views: Sequence[Cells], threshold: float) -> Cells:
    """The cells of several label images of one image: as in the first that has them, with the mean of their scores.

    A cell of another view is the same if the IoU is above 0.5. Others are new, if more than half of their pixels are free.
    Cells whose mean is below the threshold are dropped; one that a view does not have has a score of 0 there.
    """
    labels, table = views[0]
    labels, scores, categories = labels.copy(), np.array(table["score"], np.float64), table["category"].to_numpy()
    for others, other_table in views[1:]:
        areas = np.bincount(labels.ravel(), minlength=len(scores) + 1)
        other_areas = np.bincount(others.ravel(), minlength=len(other_table) + 1)
        mine, theirs, shared = overlaps(labels, others)
        same = 3 * shared > areas[mine] + other_areas[theirs]
        other_scores = other_table["score"].to_numpy(np.float64)
        scores[mine[same] - 1] += other_scores[theirs[same] - 1]
        free = np.where(labels == 0, others, 0)
        new = 2 * np.bincount(free.ravel(), minlength=len(other_areas)) > other_areas
        new[0] = False
        new[theirs[same]] = False
        number = np.where(new, len(scores) + np.cumsum(new), 0)
        labels += number[free].astype(labels.dtype)
        scores = np.concatenate([scores, other_scores[new[1:]]])
        categories = np.concatenate([categories, other_table["category"].to_numpy()[new[1:]]])
    scores /= len(views)
    kept = np.concatenate([[False], scores >= threshold])
    labels = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]
    return labels, pd.DataFrame({"score": scores[kept[1:]].astype(np.float32), "category": categories[kept[1:]]})
