"""Choice of the learning rate, spread, pairs; the tables that people read."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from cupre_d2.experiments.cupre import scores, tables
from cupre_d2.experiments.cupre.grid import Cell
from cupre_d2.experiments.cupre.learning import Point
from cupre_d2.experiments.cupre.scores import Row


def row(arm: str, percent: float, seed: int, ap: float, box: float | None = 1.0) -> Row:
    return Row(Cell(arm, percent, seed, 0.1), {"segm": {"AP": 2.0}}, {"segm": {"AP": ap}, "bbox": {"AP": box}})


ROWS = [row("coco", 5, 0, 10.0), row("coco", 5, 1, 20.0), row("cupre", 5, 0, 13.0), row("cupre", 5, 1, 21.0)]


def finished(ap: float | None) -> Any:
    return SimpleNamespace(key="x", metrics=lambda dataset: {"segm": {"AP": ap}})


def test_the_best_on_validation_is_taken_and_of_equal_ones_the_lowest() -> None:
    tasks = {
        Cell("coco", 5, 0, 0.3): finished(7.0),
        Cell("coco", 5, 0, 0.1): finished(7.0),
        Cell("coco", 5, 0, 0.2): finished(6.0),
        Cell("coco", 10, 0, 0.1): finished(None),
        Cell("coco", 10, 0, 0.2): finished(0.0),
        Cell("cupre", 5, 0, 0.1): finished(float("nan")),
    }
    assert scores.choose("cells", tasks) == {("coco", 5): 0.1, ("coco", 10): 0.2, ("cupre", 5): 0.1}


def test_pairs_are_of_one_fraction_and_seed() -> None:
    assert scores.paired([*ROWS, row("cupre", 10, 0, 50.0)], "cupre", "coco", "segm", "AP") == [3.0, 1.0]
    assert scores.paired(ROWS, "coco", "scratch", "segm", "AP") == []


def test_table_has_a_row_an_arm() -> None:
    lines = tables.headline([*ROWS, row("cupre", 10, 0, 50.0, None)]).markdown().splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "arm",
        "box AP, 5 %",
        "mask AP, 5 %",
        "box AP, 10 %",
        "mask AP, 10 %",
    ]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["coco", "1.0 ± 0.0", "15.0 ± 7.1", "-", "-"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["cupre", "1.0 ± 0.0", "17.0 ± 5.7", "nan", "50.0"]


def test_differences_are_of_pairs() -> None:
    lines = tables.differences(ROWS).markdown().splitlines()
    assert "less coco" in lines[0] and "coco_long" not in lines[0]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["cupre", "+2.0 ± 1.4 (n 2)"]


def test_rates_say_what_was_chosen() -> None:
    lines = tables.rates(ROWS).markdown().splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["coco", "5 %", "0", "0.1", "2.0"]


def test_every_number_is_kept() -> None:
    kept = replace(ROWS[0], curve=(Point(80, 13.5, 4.0),)).plain()
    assert kept["arm"] == "coco" and kept["test"]["segm"] == {"AP": 10.0}
    assert kept["validation_curve"] == [{"iterations": 80, "epochs": 13.5, "ap": 4.0}]
