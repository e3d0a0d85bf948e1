"""Pictures of predictions, and the report of a job."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from cupre_d2.data.images import PERCENTILES, Contrast
from cupre_d2.evaluation.overlays import OPACITY, SHORT_SIDE
from cupre_d2.predict.canvas import Segmentation
from cupre_d2.predict.sources import Page
from cupre_d2.predict.tiling import Window
from cupre_d2.report.figures import SIZE, svg
from cupre_d2.report.sections import render_page, write_html

REPORT = "report.html"
# Pixels of a picture in the report, and how many pictures of each kind it shows.
LONG_SIDE, PICTURES = 768, 6
JPEG_QUALITY = 82
# Of the image that is read at a time.
STRIP_PIXELS = 2**24
# Iglewicz and Hoaglin's, from where on a robust z-score is that of an outlier.
OUTLIER = 3.5


# --------------------------------------------------------------------------------------------------------------- pictures


def colours(count: int) -> np.ndarray:
    """Of so many cells or classes, count x 3 uint8: those of the overlays of training."""
    hue = np.arange(count) * 0.618 % 1
    rgb = hsv_to_rgb(np.stack([hue, np.full(count, 0.85), np.ones(count)], axis=1))
    return (255 * rgb).round().astype(np.uint8)


def write_picture(page: Page, segmentation: Segmentation, file: IO[bytes], suffix: str, longest: int) -> None:
    """Draws the cells on the image, each in a colour of its own, filled and outlined as in the overlays of training.

    A small image is enlarged, as those are. A larger one than `longest` is reduced by a whole number: a pixel of the picture
    is the mean of a block of the image, and of the cell in the middle of the block.

    Args:
        suffix: ".png" or ".jpg".
        longest: pixels of the picture's longer side.
    """
    step = -(-max(page.shape) // longest)
    samples, labels = _reduced(page, segmentation.labels, step)
    dyes = page.channels is not None and len(page.channels) == 3
    percentiles = page.reading.get("percentiles", PERCENTILES)
    image = Contrast.of(samples, page.bits, percentiles, str(page), dyes=dyes)(samples, "RGB")
    zoom = max(1, min(-(-SHORT_SIDE // min(image.shape[:2])), longest // max(image.shape[:2])))
    if zoom > 1:
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        labels = labels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    _, data = cv2.imencode(suffix, draw_cells(image, labels)[..., ::-1], options)
    file.write(data.tobytes())


def draw_cells(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """HxWx3 uint8 of an image like that, with the cells of an HxW label image on it."""
    drawn = colours(int(labels.max()) + 1)[labels].astype(np.float32)
    share = np.where(find_boundaries(labels, mode="inner"), 1, OPACITY * (labels > 0))[..., None]
    return (share * drawn + (1 - share) * image).round().astype(np.uint8)


def _reduced(page: Page, labels: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples HxWxC in their own type and labels HxW of every step-th pixel each way; the image is read in strips."""
    height, width = page.shape
    rows = step * max(1, STRIP_PIXELS // (width * step))
    parts, label_parts = [], []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = page.read(Window(top, 0, bottom, width))
        middle = min(step // 2, bottom - top - 1)
        label_parts.append(np.asarray(labels[top:bottom])[middle::step, min(step // 2, width - 1) :: step])
        parts.append(_means(strip, step))
    samples = np.concatenate(parts)
    found = np.zeros(samples.shape[:2], labels.dtype)
    all_labels = np.concatenate(label_parts)
    found[: all_labels.shape[0], : all_labels.shape[1]] = all_labels
    return samples, found


def _means(samples: np.ndarray, step: int) -> np.ndarray:
    """Of blocks of step x step samples HxWxC, in their own type; those at the lower and right border may be smaller."""
    if step == 1:
        return samples
    sums, counts = samples.astype(np.float64), []
    for axis in (0, 1):
        starts = np.arange(0, samples.shape[axis], step)
        counts.append(np.diff(starts, append=samples.shape[axis]))
        sums = np.add.reduceat(sums, starts, axis=axis)
    means = sums / (counts[0][:, None, None] * counts[1][None, :, None])
    return means.astype(samples.dtype) if samples.dtype.kind == "f" else means.round().astype(samples.dtype)


# ----------------------------------------------------------------------------------------------------------------- report


def write_report(folder: Path, pages: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> None:
    """report.html: the most uncertain and the strangest images, counts and sizes, and a table of all images.

    Args:
        folder: of the job.
        pages: their entries in predictions.json.
        failures: a line each.
    """
    write_html(folder / REPORT, lambda: report(folder, pages, failures))


def report(folder: Path, pages: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> str:
    """The report's text; see `write_report`."""
    counts = np.array([entry["summary"]["cells"] for entry in pages], float)
    scores = np.array([_or_nan(entry["summary"]["mean_score"]) for entry in pages])
    sizes = np.array([_or_nan(entry["summary"]["median_area"]) for entry in pages])
    strange = np.stack([robust_z(counts), robust_z(sizes)], axis=1).reshape(-1, 2)
    strangeness = np.abs(strange).max(axis=1, initial=0)
    uncertain = [place for place in np.argsort(scores, kind="stable").tolist() if np.isfinite(scores[place])]
    outliers = [place for place in np.argsort(-strangeness, kind="stable").tolist() if strangeness[place] > OUTLIER]
    figures = [_counts_figure(counts), _sizes_figure([entry["summary"]["areas"] for entry in pages])]
    return render_page(
        "predictions.html.j2",
        title=folder.name,
        datasets=(),
        cells=int(counts.sum()),
        rows=[_row(entry, z) for entry, z in zip(pages, strange.tolist(), strict=True)],
        failures=failures,
        galleries={
            "The least certain images": [_picture(folder, pages[place]) for place in uncertain[:PICTURES]],
            "The strangest images": [_picture(folder, pages[place]) for place in outliers[:PICTURES]],
        },
        charts=[svg(figure) for figure in figures if figure],
        outlier=OUTLIER,
    )


def _or_nan(number: float | None) -> float:
    return np.nan if number is None else number


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distances from the median in standard deviations, these estimated from the median absolute deviation.

    Where more than half of the values are the same, from the mean absolute deviation, as Iglewicz and Hoaglin (How to detect
    and handle outliers, 1993) have it. 0 for NaN, and where all are the same.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(len(values))
    distances = values - np.median(known)
    absolute = np.abs(distances[np.isfinite(values)])
    # Of a normal distribution, what makes them its standard deviation.
    spread = 1.4826 * np.median(absolute) or 1.2533 * absolute.mean()
    return np.nan_to_num(distances / spread) if spread else np.zeros(len(values))


def _row(entry: Mapping[str, Any], z: Sequence[float]) -> list[str]:
    summary = entry["summary"]
    size = f"{entry['width']} x {entry['height']}"
    score, area = summary["mean_score"], summary["median_area"]
    return [
        entry["name"],
        size,
        str(summary["cells"]),
        "–" if score is None else f"{score:.3f}",
        "–" if area is None else f"{area:.0f}",
        *(f"{number:+.1f}" for number in z),
    ]


def _picture(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / "report" / f"{entry['name']}.jpg"
    data = base64.b64encode(file.read_bytes()).decode("ascii") if file.is_file() else ""
    return {"name": entry["name"], "cells": entry["summary"]["cells"], "score": entry["summary"]["mean_score"], "jpeg": data}


def _counts_figure(counts: np.ndarray) -> Figure | None:
    if len(counts) < 2:
        return None
    # Bins of whole numbers.
    step = max(1, round(float(np.ptp(counts)) / 20))
    edges = np.arange(counts.min(), counts.max() + 2 * step, step) - 0.5
    return _histogram("Cells in an image", "cells", "images", edges, np.histogram(counts, edges)[0])


def _sizes_figure(areas: Sequence[Sequence[int]]) -> Figure | None:
    total = np.zeros(max(map(len, areas), default=0), int)
    for of_page in areas:
        total[: len(of_page)] += np.array(of_page, int)
    if not total.any():
        return None
    first = int(np.flatnonzero(total)[0])
    edges = 2 ** (np.arange(first, len(total) + 1) / 4)
    return _histogram("Sizes of cells", "area, square pixels", "cells", edges, total[first:], log_x=True)


@matplotlib.rc_context({"text.parse_math": False})
def _histogram(title: str, x_label: str, y_label: str, edges: np.ndarray, counts: np.ndarray, log_x: bool = False) -> Figure:
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(counts, edges, fill=True)
    if log_x:
        axes.set_xscale("log")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
