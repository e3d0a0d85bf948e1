"""Pictures of ground truth beside prediction, for people."""

import colorsys
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.evaluation import DatasetEvaluator
from pycocotools import mask as mask_util

from cupre_d2.data.few_shot import get_records
from cupre_d2.data.images import read_image

logger = logging.getLogger(__name__)

CAPTION_HEIGHT = 28
SHORT_SIDE = 384
OPACITY = 0.35


def draw_overlay(
    image: np.ndarray, record: dict[str, Any], instances: Any, score_threshold: float = 0.5
) -> np.ndarray:
    """Ground truth on the left, prediction on the right, each cell in a colour of its own, counts above.

    Args:
        image: H x W x 3 uint8, RGB.
        record: with "annotations" (may be empty).
        instances: Detectron2's predicted instances on the CPU.
        score_threshold: predictions below are not drawn.

    Returns:
        uint8 RGB, enlarged by a whole number so that the image's short side is at least 384 pixels.
    """
    height, width = image.shape[:2]
    zoom = max(1, math.ceil(SHORT_SIDE / min(height, width)))
    truth = [_to_mask(a["segmentation"], height, width) for a in record.get("annotations", ())]
    shown = instances[instances.scores >= score_threshold]
    predicted = list(shown.pred_masks.numpy().astype(np.uint8))
    left = _panel(image, truth, zoom, f"ground truth: {len(truth)}")
    right = _panel(image, predicted, zoom, f"prediction: {len(predicted)}, score >= {score_threshold:g}")
    gap = np.full((left.shape[0], 8, 3), 255, np.uint8)
    return np.hstack([left, gap, right])


def _to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    if not isinstance(segmentation, dict):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return mask_util.decode(segmentation)


def _panel(image: np.ndarray, masks: Iterable[np.ndarray], zoom: int, caption: str) -> np.ndarray:
    canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    fill = canvas.copy()
    outlines = []
    for index, mask in enumerate(masks):
        # The golden ratio spreads the hues of neighbours in the list.
        colour = tuple(round(255 * v) for v in colorsys.hsv_to_rgb((index * 0.618) % 1, 0.85, 1))
        large = cv2.resize(mask, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(fill, contours, -1, colour, cv2.FILLED)
        outlines.append((contours, colour))
    canvas = cv2.addWeighted(fill, OPACITY, canvas, 1 - OPACITY, 0)
    for contours, colour in outlines:
        cv2.drawContours(canvas, contours, -1, colour, 1, cv2.LINE_AA)
    strip = np.full((CAPTION_HEIGHT, canvas.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, caption, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, canvas])


class OverlayWriter(DatasetEvaluator):
    """During an evaluation, draws some images, spread evenly over the data set, to `overlays/<image id>.png`.

    Args:
        dataset_name: registered.
        count: pictures; `overlays/overview.png` holds the first four of them.
        output_dir: where the folder `overlays` is made.
    """

    def __init__(self, dataset_name: str, count: int, output_dir: str) -> None:
        self._folder = Path(output_dir) / "overlays"
        self._name = dataset_name
        self._count = count
        self._chosen: dict[Any, dict[str, Any]] = {}
        self._drawn: list[np.ndarray] = []

    def reset(self) -> None:
        records = get_records(self._name)
        places = np.linspace(0, len(records) - 1, min(self._count, len(records))).round().astype(int)
        self._chosen = {records[place]["image_id"]: records[place] for place in places}
        self._drawn = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for model_input, output in zip(inputs, outputs, strict=True):
            record = self._chosen.get(model_input["image_id"])
            if record is not None:
                image = read_image(record["file_name"], "RGB")
                picture = draw_overlay(image, record, output["instances"].to("cpu"))
                self._write(str(record["image_id"]), picture)
                self._drawn.append(picture)

    def evaluate(self) -> dict[str, Any]:
        """Writes the overview; nothing is measured."""
        if self._drawn:
            shown = self._drawn[:4]
            width = max(picture.shape[1] for picture in shown)
            padded = [_pad_right(picture, width) for picture in shown]
            self._write("overview", np.vstack(padded))
            logger.info(f"{len(self._drawn)} pictures in {self._folder}")
        return {}

    def _write(self, name: str, picture: np.ndarray) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(self._folder / f"{name}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def _pad_right(picture: np.ndarray, width: int) -> np.ndarray:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
