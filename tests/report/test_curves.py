import json
import math
from pathlib import Path

import numpy as np
import pytest

from cupre_d2.report.charts import Chart, Line
from cupre_d2.report.curves import (
    MOST_POINTS,
    read_metrics,
    recall_by_density,
    recall_by_size,
    recall_charts,
    training_charts,
)
from cupre_d2.report.matching import Tally


def test_metrics_of_a_run_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    rows = [{"iteration": 19, "total_loss": 3}, {"iteration": 39, "total_loss": 2}, {"iteration": 39, "total_loss": 1}]
    file.write_text("\n".join(map(json.dumps, rows)) + '\n{"iteration": 59, "tot')
    assert [(row["iteration"], row["total_loss"]) for row in read_metrics(file)] == [(19, 3), (39, 1)]
    assert read_metrics(tmp_path / "none.json") == []


def test_losses_of_the_two_phases_are_two_lines() -> None:
    rows = [{"iteration": i, "total_loss": 1.0} | ({"contrastive_accuracy": 0.1} if i % 2 else {}) for i in range(6)]
    (chart,) = training_charts(rows)
    assert [(line.name, len(line.points)) for line in chart.lines] == [("MoCo", 3), ("detection", 3)]


def test_ap_while_training() -> None:
    rows = [{"iteration": 9, "total_loss": 1.0, "bbox/AP": 10.0, "segm/AP": math.nan}, {"iteration": 19, "bbox/AP": 20.0}]
    loss, score = training_charts(rows)
    assert [line.name for line in loss.lines] == ["total loss"]
    assert {line.name: line.points[0] for line in score.lines}["bbox"] == (10, 10.0)
    assert training_charts([]) == []


def test_long_runs_are_thinned() -> None:
    (chart,) = training_charts([{"iteration": i, "total_loss": float(i)} for i in range(10_000)])
    points = chart.lines[0].points
    assert len(points) == MOST_POINTS
    # The loss is the iteration, which counts from 1 on the page, and so is the mean of any group.
    assert all(x == pytest.approx(y + 1) for x, y in points)


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    path = Chart("", "", "", [Line("", [(0, 1), (1, 2), (2, math.nan), (3, 1)])]).draw().paths[0]
    assert path.count("M") == 2
    assert "nan" not in path
    assert Chart("", "", "", [Line("", [(0, math.nan)])]).is_empty


@pytest.mark.parametrize("log_x", [False, True])
def test_points_stay_in_the_drawing(log_x: bool) -> None:
    chart = Chart("", "", "", [Line("", [(5, 3)]), Line("", [(1, 1), (7000, 12)], dots=True)], log_x)
    drawing = chart.draw()
    assert all(chart.left <= mark.at <= chart.right for mark in drawing.x_marks)
    assert all(chart.top <= mark.at <= chart.bottom for mark in drawing.y_marks)
    assert len(drawing.x_marks) >= 2
    assert (
        drawing.paths[1] == f"M{chart.left} {chart.bottom - (chart.bottom - chart.top) / 12:g}h0M{chart.right} {chart.top}h0"
    )


def test_recall_by_size() -> None:
    areas = np.array([10, 10, 20, 20, 0, 30, 30])
    found = np.array([1, 0, 1, 1, 1, 0, 0], bool)
    assert recall_by_size(areas, found) == [(10, 50), (20, 100), (30, 0)]


def test_recall_by_density_counts_cells_not_images() -> None:
    assert recall_by_density(np.array([0, 4, 4, 9]), np.array([0, 4, 2, 0])) == [(4, 75), (9, 0)]


def test_nothing_to_find() -> None:
    assert recall_charts(Tally()) == []
