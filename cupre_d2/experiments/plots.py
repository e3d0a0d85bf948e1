"""Figures over tidy frames: curves with their seeds, bars, means with spread, the same images run by run."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pycocotools import mask as mask_util

from cupre_d2.data.images import Percentiles, read_record
from cupre_d2.experiments.frames import where
from cupre_d2.report.detections import START_LEVEL
from cupre_d2.report.matching import HIT, NEUTRAL, ImageMatch

# Colours of a gallery.
FOUND, FALSE, MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)
# Inches a picture; pixels that its long side has at least, so that lines are thin.
SIDE, LONG_SIDE = 3.2, 640


def curves(
    frame: pd.DataFrame, x: str, hue: str, labels: tuple[str, str], panel: str = "", title: str = "{}", at: str = ""
) -> Figure:
    """The column "value" against `x`: thick the mean over seeds, where all of them have a value, and thin each seed.

    Args:
        hue: a line for each value of this column, whose place among all of the frame is its colour.
        labels: of the axes.
        panel: axes for each value of this column, with `title`; "" for one pair of axes.
        at: tells which points of two seeds are the same; by default `x`.
    """
    names = [*frame[hue].unique()]
    figure, axes = _panels(frame, panel, title, labels)
    for one, shown in axes:
        for place, name in enumerate(names):
            of_name = where(shown, **{hue: name}).sort_values(x)
            for _, seed in of_name.groupby("seed"):
                one.plot(seed[x], seed["value"], "o-", color=f"C{place}", markersize=3, linewidth=0.8, alpha=0.5)
            points = of_name.groupby(at or x)
            mean = points[[x, "value"]].mean()[points["value"].count() == of_name["seed"].nunique()]
            if len(mean):
                one.plot(mean[x], mean["value"], "o-", color=f"C{place}", markersize=5, linewidth=2, label=name)
        # From 0 on, with room above the highest.
        one.update_datalim([(0, 0)])
        one.autoscale_view()
        one.set(xlim=(0, None), ylim=(0, None))
        one.legend()
    return figure


def error_bars(
    frame: pd.DataFrame,
    x: str,
    hue: str,
    labels: tuple[str, str],
    panel: str = "",
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Means over seeds and their standard deviations against `x` on a logarithmic axis; arguments as of `curves`.

    Args:
        baselines: of panels, dashed lines across them.
    """
    names = [*frame[hue].unique()]
    figure, axes = _panels(frame, panel, "{}", labels)
    for one, shown in axes:
        for place, name in enumerate(names):
            groups = where(shown, **{hue: name}).groupby(x)["value"]
            # Side by side, or their bars would hide each other.
            shifted = [float(value) * 1.04**place for value in groups.groups]
            spreads = np.nan_to_num(groups.std().to_numpy(float))
            one.errorbar(shifted, groups.mean(), spreads, fmt="o-", color=f"C{place}", capsize=3, label=name)
        if baselines:
            one.axhline(baselines[shown[panel].iloc[0]], color="black", linestyle="--", linewidth=1, label="baseline")
        one.set(xscale="log")
        one.legend(fontsize=8)
    return figure


def bars(frame: pd.DataFrame, hue: str, label: str, order: Sequence[Any] = ()) -> Figure:
    """Of the column "value": the mean, its standard deviation over seeds, and a dot a seed.

    Args:
        hue: a bar for each value of this column; those of `order`, if any, where the frame has them.
    """
    names = [*frame[hue].unique()]
    shown = [name for name in order or names if name in names]
    figure = Figure(figsize=(1 + len(shown), 4), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(shown):
        values = where(frame, **{hue: name})["value"]
        axes.bar(place, values.mean(), width=0.6, color=f"C{names.index(name)}", alpha=0.6)
        if len(values) > 1:
            axes.errorbar(place, values.mean(), values.std(), color="black", capsize=4)
        axes.plot([place] * len(values), values, "o", color="black", markersize=3)
    axes.set(xticks=range(len(shown)), xticklabels=map(str, shown), ylabel=label)
    axes.grid(axis="y", linewidth=0.5)
    return figure


def _panels(
    frame: pd.DataFrame, panel: str, title: str, labels: tuple[str, str]
) -> tuple[Figure, list[tuple[Any, pd.DataFrame]]]:
    """Axes side by side, each with the rows that it shows."""
    groups = frame.groupby(panel, sort=False) if panel else ()
    shown = {title.format(value): rows for value, rows in groups} or {"": frame}
    figure = Figure(figsize=(6, 4) if len(shown) == 1 else (4.8 * len(shown), 4), layout="constrained")
    found = []
    for axes, (text, rows) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.set(xlabel=labels[0], ylabel=labels[1], title=text)
        axes.grid(linewidth=0.5)
        found.append((axes, rows))
    return figure, found


def gallery(images: Mapping[str, Sequence[ImageMatch]], percentiles: Percentiles) -> Figure:
    """A row a run and a column an image: cells found, false detections and missed cells by colour.

    A score stands at each detection; only those of 0.5 and more are drawn.

    Args:
        images: the same, by the name of a run.
        percentiles: contrast, as INPUT.PERCENTILES.

    Raises:
        DatasetError: an image cannot be read.
    """
    columns = len(next(iter(images.values())))
    figure = Figure(figsize=(SIDE * columns, SIDE * len(images)), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, (name, of_run) in zip(axes, images.items(), strict=True):
        for column, image in zip(row, of_run, strict=True):
            _show(column, image, percentiles)
        row[0].set_ylabel(name)
    figure.suptitle("green: found, orange: false, yellow: missed (IoU 0.5, score 0.5 and more)", fontsize=8)
    return figure


def _show(axes: Any, image: ImageMatch, percentiles: Percentiles) -> None:
    pixels = read_record(dict(image.record), "RGB", percentiles)
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
