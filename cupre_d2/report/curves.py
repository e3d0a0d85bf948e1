"""The charts of a report: training, and recall against size and density."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cupre_d2.report.charts import Chart, Line, Point
from cupre_d2.report.detections import START_LEVEL
from cupre_d2.report.matching import SCORE_STEPS, Tally

# More points of a line than that are not to be seen.
MOST_POINTS = 240
GROUPS = 8


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """A stage's metrics.json by iteration; none if there is no file.

    A run that was killed may have left half a line, and on resuming repeats iterations, of which the last is right.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            rows[row["iteration"]] = rows.get(row["iteration"], {}) | row
    return [rows[iteration] for iteration in sorted(rows)]


def training_charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """The loss, and AP where the stage was evaluated while it trained."""
    losses = {"MoCo": [row for row in rows if _is_moco(row)], "detection": [row for row in rows if not _is_moco(row)]}
    together = [_line(phase, of_phase, "total_loss") for phase, of_phase in losses.items()]
    together = [line for line in together if line.points]
    if len(together) == 1:
        together = [Line("total loss", together[0].points)]
    names = sorted({name for row in rows for name in row if name.endswith(("bbox/AP", "segm/AP"))})
    scores = [_line(name.removesuffix("/AP"), rows, name) for name in names]
    charts = [
        Chart("Loss", "iteration", "total loss", together),
        Chart("AP while training", "iteration", "AP, %", scores),
    ]
    return [chart for chart in charts if not chart.is_empty]


def _is_moco(row: dict[str, Any]) -> bool:
    return "contrastive_accuracy" in row


def _line(name: str, rows: Sequence[dict[str, Any]], key: str) -> Line:
    return Line(name, _thinned([(row["iteration"] + 1, float(row[key])) for row in rows if row.get(key) is not None]))


def _thinned(points: list[Point]) -> list[Point]:
    """At most MOST_POINTS, means of neighbours; a group with a value that is not finite stays so, and shows as a gap."""
    if len(points) <= MOST_POINTS:
        return points
    return [tuple(group.mean(axis=0).tolist()) for group in np.array_split(np.array(points), MOST_POINTS)]


def recall_charts(tally: Tally) -> list[Chart]:
    """Recall at IoU 0.5 against a cell's area and against the number of cells in its image; groups of about equal size."""
    levels = {"any score": 0, f"score ≥ {SCORE_STEPS[START_LEVEL]:g}": START_LEVEL}
    by_size = [Line(name, recall_by_size(*tally.by_cell(level))) for name, level in levels.items()]
    cells, found = tally.by_image(START_LEVEL)
    there = cells > 0
    each = list(zip(cells[there].tolist(), (100 * found[there] / cells[there]).tolist(), strict=True))
    by_density = [Line(name, recall_by_density(*tally.by_image(level))) for name, level in levels.items()]
    dots = Line("an image, " + by_density[-1].name, sorted(each), dots=True)
    charts = [
        Chart("Recall by cell size", "area of a cell, square pixels", "cells found, %", by_size, True, (0, 100)),
        Chart("Recall by density", "cells in an image", "cells found, %", [*by_density, dots], True, (0, 100)),
    ]
    return [chart for chart in charts if not chart.is_empty]


def recall_by_size(areas: np.ndarray, found: np.ndarray) -> list[Point]:
    """(median area, percent found) of up to GROUPS groups of as many cells.

    Args:
        areas: N float64, square pixels. found: N bool.
    """
    # Nothing may be left of a cell that was annotated at the border, and a logarithmic axis has no 0.
    order = np.argsort(areas, kind="stable")[np.count_nonzero(areas <= 0) :]
    groups = np.array_split(order, min(GROUPS, len(order))) if len(order) else []
    return _joined([(float(np.median(areas[group])), 100 * found[group].mean(), len(group)) for group in groups])


def recall_by_density(cells: np.ndarray, found: np.ndarray) -> list[Point]:
    """(median number of cells, percent found of all together) of up to GROUPS groups of as many images.

    Args:
        cells: N int64, of an image. found: N int64, of them.
    """
    order = np.argsort(cells, kind="stable")[np.count_nonzero(cells == 0) :]
    groups = np.array_split(order, min(GROUPS, len(order))) if len(order) else []
    return _joined(
        [(float(np.median(cells[g])), 100 * found[g].sum() / cells[g].sum(), int(cells[g].sum())) for g in groups]
    )


def _joined(groups: Sequence[tuple[float, float, int]]) -> list[Point]:
    """Groups of the same x as one, weighted by their numbers of cells."""
    joined = []
    for x in sorted({x for x, _, _ in groups}):
        same = [(y, weight) for other, y, weight in groups if math.isclose(other, x)]
        joined.append((x, float(np.average([y for y, _ in same], weights=[weight for _, weight in same]))))
    return joined
