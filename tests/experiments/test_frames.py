"""What tables and figures make of a tidy frame."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cupre_d2.experiments import plots
from cupre_d2.experiments.frames import paired, text_table, tidy, where, with_spread

SCORES = pd.DataFrame(
    [("coco", 5, 0, 10.0), ("coco", 5, 1, 20.0), ("cupre", 5, 0, 13.0), ("cupre", 5, 1, 21.0), ("cupre", 10, 0, 30.0)],
    columns=["arm", "percent", "seed", "value"],
)


def test_every_number_is_a_row() -> None:
    runs = [({"seed": 0, "k": None}, {"cells": {"counts": {"MAE": 2.0, "R2": None}}}), ({"seed": 1, "k": 5}, {"cells": {}})]
    frame = tidy(runs)
    assert frame.columns.tolist() == ["seed", "k", "dataset", "task", "metric", "value"]
    assert frame["metric"].tolist() == ["MAE", "R2"] and math.isnan(frame["value"][1])
    assert frame.to_csv(index=False).splitlines()[1:] == ["0,,cells,counts,MAE,2.0", "0,,cells,counts,R2,"]


def test_text_tables_have_a_row_a_combination_in_order() -> None:
    table = text_table(SCORES, {"arm": "arm", "percent": "annotated"}, {"AP": lambda rows: with_spread(rows["value"])})
    assert table.columns.tolist() == ["arm", "annotated", "AP"]
    assert table.to_numpy().tolist() == [["coco", "5", "15.0 ± 7.1"], ["cupre", "5", "17.0 ± 5.7"], ["cupre", "10", "30.0"]]


def test_what_is_not_defined_is_said() -> None:
    assert with_spread([1.0, math.nan]) == "nan ± nan"


def test_pairs_are_alike_in_all_but_one_column() -> None:
    assert paired(SCORES, "arm", "cupre", "coco", ["percent", "seed"]) == [3.0, 1.0]
    assert paired(SCORES, "arm", "coco", "scratch", ["percent", "seed"]) == []


def lines(figure: Figure, panel: int = 0) -> list[tuple[str, str, list]]:
    """Colour, name ("" for none) and points."""
    drawn = figure.axes[panel].lines
    names = [str(line.get_label()) for line in drawn]
    return [
        (line.get_color(), "" if name.startswith("_") else name, np.asarray(line.get_xydata()).tolist())
        for line, name in zip(drawn, names, strict=True)
    ]


def test_curves_have_a_mean_where_all_seeds_have_a_value() -> None:
    rows = [
        *(("coco", 5, 0, 80, 8.0, 3.0), ("coco", 5, 0, 160, 16.0, 6.0)),
        *(("coco", 5, 1, 80, 8.0, 5.0), ("coco", 5, 1, 160, 16.0, 7.0)),
        *(("cupre", 5, 0, 80, 8.0, 4.0), ("cupre", 5, 0, 160, 16.0, 8.0), ("cupre", 5, 1, 160, 16.0, 9.0)),
        ("cupre", 10, 0, 160, 8.0, 12.0),
    ]
    frame = pd.DataFrame(rows, columns=["arm", "percent", "seed", "iterations", "epochs", "value"])
    figure = plots.curves(frame, "epochs", "arm", ("epochs", "AP"), "percent", "{:g} % annotated", "iterations")
    assert [axes.get_title() for axes in figure.axes] == ["5 % annotated", "10 % annotated"]
    assert lines(figure) == [
        ("C0", "", [[8, 3], [16, 6]]),
        ("C0", "", [[8, 5], [16, 7]]),
        ("C0", "coco", [[8, 4], [16, 6.5]]),
        ("C1", "", [[8, 4], [16, 8]]),
        ("C1", "", [[16, 9]]),
        ("C1", "cupre", [[16, 8.5]]),
    ]
    # An arm keeps its colour where others have no run.
    assert lines(figure, 1) == [("C1", "", [[8, 12]]), ("C1", "cupre", [[8, 12]])]
    plots.curves(frame[:0], "epochs", "arm", ("epochs", "AP"), "percent").draw_without_rendering()


def test_curves_go_by_x_in_whatever_order_they_were_asked_for() -> None:
    by_percent = lines(plots.curves(SCORES[::-1], "percent", "arm", ("", "")))
    assert ("C0", "", [[5, 13], [10, 30]]) in by_percent


def test_bars_are_in_the_papers_order_with_the_arms_colours() -> None:
    figure = plots.bars(where(SCORES, percent=5), "arm", "AP", ("cupre", "cuprepp", "coco"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["cupre", "coco"]
    assert [bar.get_height() for bar in axes.patches] == [17.0, 15.0]
    assert [round(bar.get_facecolor()[0], 2) for bar in axes.patches] == [1.0, 0.12]
    assert lines(figure)[-1] == ("black", "", [[1, 10], [1, 20]])


def test_error_bars_go_by_x_with_a_baseline() -> None:
    rows = [("gas", 50, 0, 41.0), ("gas", 50, 1, 43.0), ("means", 5, 0, 30.0), ("gas", 5, 0, 40.0)]
    frame = pd.DataFrame(rows, columns=["algorithm", "clusters", "seed", "value"]).assign(part="known")
    figure = plots.error_bars(frame, "clusters", "algorithm", ("k", "MAP"), "part", baselines={"known": 35.0})
    points = [np.asarray(container.lines[0].get_xydata()) for container in figure.axes[0].containers]
    assert points[0].tolist() == [[5, 40], [50, 42]] and points[1][0] == pytest.approx([5.2, 30])
    assert figure.axes[0].get_xscale() == "log" and ("black", "baseline", [[0, 35], [1, 35]]) in lines(figure)
