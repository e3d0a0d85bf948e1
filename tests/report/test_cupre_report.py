"""The report of an experiment: its text, and the page in a browser."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from cupre_d2.experiments.cupre import html
from cupre_d2.experiments.cupre.grid import Cell, Experiment, Grid
from cupre_d2.experiments.cupre.learning import Point
from cupre_d2.experiments.cupre.outcome import Outcome
from cupre_d2.experiments.cupre.page import write_page
from cupre_d2.experiments.cupre.scores import Row
from cupre_d2.experiments.results import Origin
from cupre_d2.experiments.tasks import Evaluation, Task
from tests.report.conftest import FOUND, NAMES, TRUE, annotation, result, write_results

ARMS = {"coco": 10.0, "cuprepp": 12.5, "<b>cupre</b>": float("nan")}


@dataclass(frozen=True)
class Written(Evaluation):
    """Detections are where `write_results` has put them."""

    @property
    def detections(self) -> Path:
        return self.task.folder / "inference" / self.dataset / "instances_results.json"


@dataclass(frozen=True)
class Small(Outcome):
    def evaluated_on(self) -> tuple[str, bool]:
        return "cells_test", True


@pytest.fixture()
def outcome(register: Callable[..., None], tmp_path: Path) -> Outcome:
    """Three arms, one seed; the first run alone has a report of its own."""
    register("cells_test", {key: [annotation(box) for box in boxes] for key, boxes in TRUE.items()}, NAMES)
    rows, tests = [], {}
    for number, (arm, ap) in enumerate(ARMS.items()):
        cell = Cell(arm, 5, 0, 0.1)
        task = Task(f"finetune-{number}", "finetune", "t", tmp_path / "stages" / f"a task {number}", "", (), 80)
        write_results(task.folder, "cells_test", [result(*one) for one in FOUND[number:]])
        tests[cell] = Written(task, "cells_test")
        numbers = {"segm": {"AP": ap}, "bbox": {"AP": ap}}
        rows.append(Row(cell, numbers, numbers, (Point(40, 5.0, 3.0), Point(80, 10.0, 7.0))))
    next(iter(tests.values())).task.report.write_text("")
    experiment = Experiment("cells", Path("configs"), Grid(tuple(ARMS), (5,), (0,), (0.1,)))
    (tmp_path / "docs").mkdir()
    return Small(experiment, Origin("python x.py '<i>'", "abc", {"torch": "2"}), tmp_path / "docs" / "table", rows, tests)


def written(outcome: Outcome) -> Path:
    path = outcome.write_report(html.render)
    assert path is not None and path.name == "table_report.html"
    return path


def test_text(outcome: Outcome) -> None:
    page = written(outcome).read_text()
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S))).split())
    assert "3 arms × 1 fractions × 1 seeds" in text
    assert "coco 10.0 10.0 cuprepp 12.5 12.5 <b>cupre</b> nan nan" in text
    assert "cuprepp +2.5 (n 1)" in text and "Epochs, 5 % annotated" in text and "Ablation coco 10.0 cuprepp 12.5" in text
    assert "python x.py '<i>'" in text and "torch 2" in text and "commit abc" in text
    assert re.findall(r'href="([^"]*)"', page) == ["../stages/a%20task%200/report.html"]
    assert not re.search(r"https?:|<link|@import|url\(|<b>cupre", page)
    assert page.count("<script") == 2


def test_without_ablation(outcome: Outcome) -> None:
    rows = [row for row in outcome.rows if row.cell.arm == "coco"]
    page = html.render(Small(outcome.experiment, outcome.origin, outcome.results, rows, outcome.tests))
    assert 'id="ablation"' not in page and 'id="curves"' in page


def test_markdown_shows_its_figures(outcome: Outcome) -> None:
    write_page(outcome)
    text = outcome.beside(".md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == ["table.png", "table_epochs.png", "table_ablation.png", "table_arms.jpg"]
    assert all((outcome.results.parent / name).is_file() for name in shown)


def test_a_missing_file_is_logged(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> None:
    next(iter(outcome.tests.values())).detections.unlink()
    assert outcome.write_report(html.render) is None
    assert "instances_results.json" in caplog.text


@pytest.mark.slow
def test_in_a_browser(visit: Callable[[Path], AbstractContextManager[Any]], outcome: Outcome) -> None:
    with visit(written(outcome)) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator(".chart svg").count() == 2 and page.locator(".bars div").count() == 2
        totals = page.locator(".total").all_text_contents()
        assert len(totals) == 3 and totals[0].startswith("2 found, 6 missed, 2 false; recall 25.0 %")
        page.locator("[name=level]").fill("0")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.locator(".total").first.text_content().startswith("3 found, 5 missed, 2 false")
        colour = "getComputedStyle(document.querySelector('.line')).stroke"
        light = page.evaluate(colour)
        page.locator("#theme").click()
        assert page.evaluate(colour) != light
