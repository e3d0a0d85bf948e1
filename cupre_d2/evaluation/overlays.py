"""Pictures of ground truth beside prediction, for people."""

import colorsys
import logging
import math
import re
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_util

from cupre_d2.data.few_shot import get_records
from cupre_d2.data.images import PERCENTILES, Percentiles, read_record
from cupre_d2.evaluation.cells import to_rles

logger = logging.getLogger(__name__)

OVERVIEW = "overview"
CAPTION_HEIGHT = 28
GAP = 8
SHORT_SIDE = 384
OPACITY = 0.3
CROWD_COLOUR = (128, 128, 128)


def draw_overlay(
    image: np.ndarray, record: dict[str, Any], instances: Instances | None, score_threshold: float = 0.5
) -> np.ndarray:
    """Ground truth on the left, prediction on the right, each cell in a colour of its own, counts above.

    Args:
        image: H x W x 3 uint8, RGB.
        record: with or without "annotations"; crowd regions are drawn grey and not counted.
        instances: Detectron2's predicted instances on the CPU; None draws the image alone.
        score_threshold: predictions below are not drawn.

    Returns:
        uint8 RGB, enlarged by a whole number so that the image's short side is at least 384 pixels.

    Raises:
        ValueError: a segmentation that is empty, malformed or of another size than the image.
    """
    height, width = image.shape[:2]
    annotations = record.get("annotations", ())
    true_masks = map(mask_util.decode, to_rles([a.get("segmentation") for a in annotations], height, width))
    crowds = [bool(a.get("iscrowd", 0)) for a in annotations]
    left = _panel(
        image, zip(true_masks, _colours(crowds), strict=True), f"ground truth: {_cells(len(crowds) - sum(crowds))}"
    )
    if instances is None:
        right = _panel(image, (), "no prediction")
    else:
        shown = instances[instances.scores >= score_threshold]
        predicted = (mask.numpy().astype(np.uint8) for mask in shown.pred_masks)
        caption = f"prediction: {_cells(len(shown))}, score ≥ {score_threshold:g}"
        right = _panel(image, zip(predicted, _colours([False] * len(shown)), strict=True), caption)
    gap = np.full((left.shape[0], GAP, 3), 255, np.uint8)
    return np.hstack([left, gap, right])


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"


def _colours(crowds: Iterable[bool]) -> Iterable[tuple[int, ...]]:
    for index, is_crowd in enumerate(crowds):
        # Steps of the golden ratio spread the hues of neighbours in the list.
        hue = (index * 0.618) % 1
        yield CROWD_COLOUR if is_crowd else tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85, 1))


def _panel(image: np.ndarray, cells: Iterable[tuple[np.ndarray, tuple[int, ...]]], caption: str) -> np.ndarray:
    """The enlarged image with the (mask, colour) pairs as fill and outline, under its caption."""
    zoom = max(1, math.ceil(SHORT_SIDE / min(image.shape[:2])))
    canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    fill = canvas.copy()
    outlines = []
    for mask, colour in cells:
        contours = _contours(mask, zoom)
        cv2.drawContours(fill, contours, -1, colour, cv2.FILLED)
        outlines.append((contours, colour))
    canvas = cv2.addWeighted(fill, OPACITY, canvas, 1 - OPACITY, 0)
    for contours, colour in outlines:
        cv2.drawContours(canvas, contours, -1, colour, 1)
    return np.vstack([_caption(caption, canvas.shape[1]), canvas])


def _contours(mask: np.ndarray, zoom: int) -> list[np.ndarray]:
    """Outer and inner contours of a uint8 mask, in pixels of the enlarged image."""
    x, y, width, height = cv2.boundingRect(mask)
    if not width:
        return []
    cut = cv2.resize(mask[y : y + height, x : x + width], None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(cut, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x * zoom, y * zoom))
    return list(contours)


def _caption(text: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, CAPTION_HEIGHT), "white")
    ImageDraw.Draw(strip).text((6, CAPTION_HEIGHT // 2), text, fill="black", font=_font(), anchor="lm")
    return np.asarray(strip)


@cache
def _font() -> ImageFont.FreeTypeFont:
    # The fonts inside Pillow and OpenCV have no ≥; matplotlib brings one that has.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 15)


class OverlayWriter(DatasetEvaluator):
    """During an evaluation, draws some images, spread evenly over the data set, to `overlays/NAME/<image id>.png`.

    `overlays/NAME/overview.png` holds all of them, one below the other. Of several processes each draws its own images and
    the first makes the overview; an evaluator listed before must wait for all of them, as CellCOCOEvaluator does.

    Args:
        dataset_name: registered.
        count: of pictures; 0 draws none.
        output_dir: where the folder `overlays` is made, a sub-folder a data set.
        percentiles: as INPUT.PERCENTILES, so that people see images as the model does.
    """

    def __init__(self, dataset_name: str, count: int, output_dir: str, percentiles: Percentiles = PERCENTILES) -> None:
        self._name = dataset_name
        self._count = count
        self._percentiles = percentiles
        self._folder = Path(output_dir) / "overlays" / dataset_name
        self._records: dict[Hashable, dict[str, Any]] = {}
        self._paths: dict[Hashable, Path] = {}

    def reset(self) -> None:
        records = get_records(self._name)
        places = np.linspace(0, len(records) - 1, min(self._count, len(records))).round().astype(int)
        self._records = {records[place]["image_id"]: records[place] for place in places}
        self._paths = {}
        taken = {OVERVIEW}
        for image_id in self._records:
            name = _unused_name(image_id, taken)
            self._paths[image_id] = self._folder / f"{name}.png"

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for model_input, output in zip(inputs, outputs, strict=True):
            record = self._records.get(model_input["image_id"])
            if record is not None:
                image = read_record(record, "RGB", self._percentiles)
                picture = draw_overlay(image, record, output["instances"].to("cpu"))
                self._write(self._paths[record["image_id"]], picture)

    def evaluate(self) -> dict[str, Any]:
        """Writes the overview; nothing is measured."""
        if not comm.is_main_process():
            return {}
        drawn = [np.asarray(Image.open(path)) for path in self._paths.values() if path.is_file()]
        if len(drawn) < len(self._paths):
            missing = len(self._paths) - len(drawn)
            logger.warning("%s: %d of %d overlays were not drawn", self._name, missing, len(self._paths))
        if drawn:
            width = max(picture.shape[1] for picture in drawn)
            wide = [np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0)), constant_values=255) for one in drawn]
            self._write(self._folder / f"{OVERVIEW}.png", np.vstack(wide))
            logger.info("%s: %d overlays in %s", self._name, len(drawn), self._folder)
        return {}

    def _write(self, path: Path, picture: np.ndarray) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def _unused_name(image_id: Hashable, taken: set[str]) -> str:
    """A file name for an image id, which may be any text; added to those taken."""
    name = re.sub(r"[^\w.-]", "_", str(image_id)).lstrip(".")[:100]
    while name in taken or not name:
        name += "_"
    taken.add(name)
    return name
