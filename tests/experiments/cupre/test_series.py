"""What the figures show, and that they can be drawn."""

import math
from pathlib import Path

import pytest
from PIL import Image

from cupre_d2.experiments.cupre import figures, series
from cupre_d2.experiments.cupre.grid import Cell
from cupre_d2.experiments.cupre.learning import Point
from cupre_d2.experiments.cupre.scores import Row
from cupre_d2.experiments.cupre.series import Series


def row(arm: str, percent: float, seed: int, ap: float | None, *curve: tuple[int, float]) -> Row:
    points = tuple(Point(iterations, iterations / 10, value) for iterations, value in curve)
    return Row(Cell(arm, percent, seed, 0.1), {"segm": {"AP": 2.0}}, {"segm": {"AP": ap}, "bbox": {"AP": 1.0}}, points)


ROWS = [
    row("coco", 5, 0, 10.0, (80, 3.0), (160, 6.0)),
    row("coco", 5, 1, 20.0, (80, 5.0), (160, 7.0)),
    row("cupre", 5, 0, 13.0, (80, 4.0), (160, 8.0)),
    # Evaluated at its end alone.
    row("cupre", 5, 1, 21.0, (160, 9.0)),
    row("cupre", 10, 0, 30.0, (160, 12.0)),
]


def test_means_are_where_all_seeds_have_a_value() -> None:
    five, ten = series.against_epochs(ROWS)
    assert (five.title, ten.title) == ("5 % annotated", "10 % annotated")
    coco, cupre = five.series
    assert coco == Series("coco", [(8, 4), (16, 6.5)], [[(8, 3), (16, 6)], [(8, 5), (16, 7)]])
    assert cupre == Series("cupre", [(16, 8.5)], [[(8, 4), (16, 8)], [(16, 9)]])
    # An arm keeps its place, and with it its colour, where it has no run.
    assert ten.series == [Series("coco", [], []), Series("cupre", [(16, 12)], [[(16, 12)]])]


def test_against_fractions() -> None:
    coco, cupre = series.against_fractions(ROWS).series
    assert coco == Series("coco", [(5, 15)], [[(5, 10)], [(5, 20)]])
    assert cupre == Series("cupre", [(5, 17), (10, 30)], [[(5, 13), (10, 30)], [(5, 21)]])
    # In whatever order they were asked for.
    assert series.against_fractions(ROWS[::-1]).series[0].runs == [[(5, 13), (10, 30)], [(5, 21)]]


def test_ablation_is_of_the_smallest_fraction_in_the_papers_order() -> None:
    assert series.ablation(ROWS) == []
    bars = series.ablation([*ROWS, row("cuprepp", 5, 0, 3.0), row("cocopp", 5, 0, 1.0), row("cocopp", 5, 1, 3.0)])
    assert [(bar.arm, bar.place) for bar in bars] == [("coco", 0), ("cocopp", 3), ("cupre", 1), ("cuprepp", 2)]
    assert (bars[1].mean, bars[1].spread) == (2.0, pytest.approx(math.sqrt(2)))
    assert bars[2].values == [13.0, 21.0] and math.isnan(bars[3].spread)


@pytest.mark.parametrize("last", [3.0, None])
def test_figures_are_drawn(last: float | None, tmp_path: Path) -> None:
    rows = [*ROWS, row("cuprepp", 5, 0, last)]
    figures.draw_epochs(series.against_epochs(rows), tmp_path / "epochs.png")
    figures.draw_fractions(series.against_fractions(rows), tmp_path / "fractions.png")
    figures.draw_ablation(series.ablation(rows), tmp_path / "ablation.png")
    widths = {}
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as image:
            widths[file.stem] = image.width
    assert widths == {"epochs": 1200, "fractions": 720, "ablation": 480}
