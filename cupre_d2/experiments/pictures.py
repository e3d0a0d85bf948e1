"""The same images as each arm segments them, as a picture and for a page (Fig. 8-10 of CUPre's paper)."""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from matplotlib.figure import Figure
from pycocotools import mask as mask_util

from cupre_d2.data.images import read_record
from cupre_d2.experiments.tasks import Task
from cupre_d2.report.detections import START_LEVEL, read_evaluation, read_images
from cupre_d2.report.matching import HIT, NEUTRAL, ImageMatch
from cupre_d2.report.pictures import PICTURE_BYTES, DatasetPart, dataset_part

# Of the number of cells: a sparse, a middling and a crowded image.
QUANTILES = (0.25, 0.5, 0.9)
FOUND, FALSE, MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)
# Inches a picture; pixels that its long side has at least, so that lines are thin.
SIDE, LONG_SIDE = 3.2, 640


def compare(detections: Mapping[str, Path], dataset: str, use_cats: bool, chosen: Sequence[Hashable], file: Path) -> None:
    """Writes a picture of a row an arm and a column an image: cells found, false detections and missed cells by colour.

    A score stands at each detection; only those of 0.5 and more are drawn.

    Args:
        detections: instances_results.json on the data set, by arm.
        use_cats: whether categories are told apart.
        chosen: ids of the images.

    Raises:
        DatasetError: the data set or a file of detections cannot be used.
    """
    figure = Figure(figsize=(SIDE * len(chosen), SIDE * len(detections)), layout="constrained")
    axes = figure.subplots(len(detections), len(chosen), squeeze=False)
    for row, (arm, results) in zip(axes, detections.items(), strict=True):
        for column, image in zip(row, read_images(results, dataset, use_cats, chosen), strict=True):
            _show(column, image)
        row[0].set_ylabel(arm)
    figure.suptitle("green: found, orange: false, yellow: missed (IoU 0.5, score 0.5 and more)", fontsize=8)
    figure.savefig(file, dpi=110, pil_kwargs={"quality": 85})


def parts(detections: Mapping[str, Path], dataset: str, use_cats: bool, chosen: Sequence[Hashable]) -> list[DatasetPart]:
    """The same for a report's page: a part an arm; arguments and errors as of `compare`."""
    found = []
    for arm, results in detections.items():
        evaluated = read_evaluation(results, dataset, use_cats, keep=1)
        images = read_images(results, dataset, use_cats, chosen)
        found.append(dataset_part(replace(evaluated, name=arm, worst=images), PICTURE_BYTES // len(detections)))
    return found


def link(start: Path, task: Task) -> str:
    """From a page in the folder `start` to the task's own report; "" if it has none."""
    return quote(os.path.relpath(task.report, start)) if task.report.is_file() else ""


def choose(records: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Ids of the images at QUANTILES of the number of cells, each once; what an arm finds in them has no say."""
    ordered = sorted(records, key=lambda record: len(record["annotations"]))
    places = [round(quantile * (len(ordered) - 1)) for quantile in QUANTILES]
    return list(dict.fromkeys(ordered[place]["image_id"] for place in places))


def _show(axes: Any, image: ImageMatch) -> None:
    pixels = read_record(dict(image.record), "RGB")
    zoom = max(1, round(LONG_SIDE / max(pixels.shape[:2])))
    canvas = cv2.resize(pixels, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    shown = image.levels >= START_LEVEL
    missed = (image.found_levels < START_LEVEL) & ~image.truth.crowd
    for cell in np.flatnonzero(missed).tolist():
        _outline(canvas, image.truth.masks[cell], zoom, MISSED)
    for index in np.flatnonzero(shown & (image.outcomes != NEUTRAL)).tolist():
        mask = image.detections.masks[index]
        _outline(canvas, mask, zoom, FOUND if image.outcomes[index] == HIT else FALSE)
        x, y, *_ = mask_util.toBbox(mask).tolist()
        axes.text(x * zoom, y * zoom, f"{image.detections.scores[index]:.2f}", color="white", fontsize=3.5)
    axes.imshow(canvas)
    axes.set(xticks=[], yticks=[])
    counts = image.counts(START_LEVEL)
    axes.set_xlabel(f"{counts.found} found, {counts.false} false, {counts.missed} missed", fontsize=7)


def _outline(canvas: np.ndarray, mask: Any, zoom: int, color: tuple[int, int, int]) -> None:
    large = cv2.resize(mask_util.decode(mask), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, 2)
