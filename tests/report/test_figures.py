import math
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from cupre_d2.report.figures import (
    MOST_DOTS,
    MOST_POINTS,
    Line,
    line_figure,
    recall_against,
    recall_figures,
    svg,
    training_figures,
)
from cupre_d2.report.matching import Tally

SCORES = {"bbox/AP": "AP, %", "segm/AP": "AP, %", "counts/MAE": "MAE, cells"}


def drawn(*lines: Line, log_x: bool = False) -> Figure:
    figure = line_figure("Title <b>", "x", "y", lines, log_x)
    assert figure is not None
    return figure


def of_any_library() -> Figure:
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    axes.bar([1, 2], [3, 4], color="black", label="a")
    axes.imshow([[0, 1], [1, 0]])
    axes.grid()
    axes.legend()
    return figure


@pytest.mark.parametrize("figure", [drawn(Line("a", [(1, 2), (3, 4)]), Line("b", [(1, 1)], dots=True)), of_any_library()])
def test_nothing_of_it_reaches_out_of_its_element(figure: Figure) -> None:
    text = svg(figure)
    assert not re.search(r"https?:|xmlns|<\?xml|<!|<style|<metadata|DejaVu", text)
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in re.findall(r'\bhref="([^"]*)"', text))
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)(\w+)', text)) <= set(ids)


def test_ids_of_two_figures_differ() -> None:
    ids = [set(re.findall(r'\bid="([^"]*)"', svg(drawn(Line("a", [(1, 2), (3, y)]))))) for y in (4, 5)]
    assert ids[0] and not ids[0] & ids[1]


def test_the_same_figure_is_the_same_text() -> None:
    figure = drawn(Line("a", [(1, 2), (3, 4)]))
    assert svg(figure) == svg(figure) == svg(drawn(Line("a", [(1, 2), (3, 4)])))


@pytest.mark.parametrize("figure", [drawn(Line("a", [(1, 2), (3, 4)])), of_any_library()])
def test_colours_are_the_page_s(figure: Figure) -> None:
    text = svg(figure)
    assert "fill: currentColor" in text and "stroke: currentColor" in text
    # White would be the background of matplotlib's pages, black its text and axes, grey its grid.
    assert not re.search(r"#(000000|ffffff|b0b0b0)", text)


def test_text_stays_text() -> None:
    text = svg(drawn(Line("a", [(1, 2)]), Line("stroke: #000000 --> & id='x' $\\a$", [(1, 1)])))
    assert "Title &lt;b&gt;" in text and "stroke: #000000 --&gt; &amp; id='x' $\\a$" in text


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    points = [(0, 1), (1, 2), (2, math.nan), (3, math.inf), (4, 1)]
    (line,) = drawn(Line("", points)).axes[0].lines
    text = svg(line.figure)
    path = next(path for path in re.findall(r'<path d="([^"]*)"[^>]*var\(--line0', text))
    assert (path.count("M"), path.count("L"), "nan" in text) == (2, 1, False)
    # The last point has no neighbour: a line does not show it, a dot does.
    assert list(line.get_markevery()) == [4]
    assert line_figure("", "", "", [Line("", [(0, math.nan)])]) is None
    assert line_figure("", "", "", []) is None


def test_logarithmic_x() -> None:
    axes = drawn(Line("a", [(1, 1), (7000, 12)]), log_x=True).axes[0]
    assert axes.get_xscale() == "log"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert {"1", "10", "100", "1k"} <= set(labels)


def test_a_chart_is_small() -> None:
    lines = [Line(name, [(x, x**0.5) for x in range(240)]) for name in "ab"]
    assert len(svg(drawn(*lines))) < 30_000


def lines_of(figure: Figure) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[0].lines}


def test_losses_of_the_phases_are_lines_of_one_chart() -> None:
    rows: list[dict[str, Any]] = [
        {"iteration": i, "moco/total_loss" if i % 3 else "coco/total_loss": float(i), "lr": 0.1} for i in range(6)
    ]
    (figure,) = training_figures(rows, SCORES)
    lines = lines_of(figure)
    assert lines["moco"].tolist() == [[2, 1], [3, 2], [5, 4], [6, 5]] and lines["coco"].tolist() == [[1, 0], [4, 3]]
    assert "moco" in svg(figure) and "coco" in svg(figure)


def test_scores_while_training() -> None:
    rows = [
        {"iteration": 9, "total_loss": 1.0, "bbox/AP": 10.0, "segm/AP": math.nan, "segm/AP50": 1.0, "x/counts/MAE": 3.0},
        {"iteration": 19, "bbox/AP": 20.0},
    ]
    loss, ap, mae = training_figures(rows, SCORES)
    assert list(lines_of(loss)) == ["total loss"]
    assert lines_of(ap)["bbox"].tolist() == [[10, 10], [20, 20]] and sorted(lines_of(ap)) == ["bbox", "segm"]
    assert lines_of(mae)["x/counts"].tolist() == [[10, 3]] and mae.axes[0].get_ylabel() == "MAE, cells"
    assert training_figures([], SCORES) == []


def test_long_runs_are_thinned() -> None:
    (figure,) = training_figures([{"iteration": i, "total_loss": float(i)} for i in range(10_000)], SCORES)
    points = lines_of(figure)["total loss"]
    assert len(points) == MOST_POINTS
    # The loss is the iteration, which counts from 1 on the page, and so is the mean of any group.
    assert points[:, 0] == pytest.approx(points[:, 1] + 1)


def test_recall_against_size() -> None:
    areas = np.array([10, 10, 20, 20, 0, 30, 30])
    found = np.array([1, 0, 1, 1, 1, 0, 0], bool)
    assert recall_against(areas, np.ones(7, int), found) == [(10, 50), (20, 100), (30, 0)]


def test_recall_against_density_counts_cells_not_images() -> None:
    cells = np.array([0, 4, 4, 9])
    assert recall_against(cells, cells, np.array([0, 4, 2, 0])) == [(4, 75), (9, 0)]


def test_nothing_to_find() -> None:
    assert recall_figures(Tally()) == []


def test_many_images_have_some_dots() -> None:
    class Many(Tally):
        def by_image(self, level: int) -> tuple[np.ndarray, np.ndarray]:
            return np.arange(5000), np.arange(5000) // 2

    (figure,) = recall_figures(Many())
    dots = list(lines_of(figure).values())[-1]
    assert len(dots) == MOST_DOTS and dots[0, 0] == 1 and dots[-1, 0] == 4999
    assert len(svg(figure)) < 100_000
