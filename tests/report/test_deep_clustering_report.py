"""The report of deep clustering's table: its text, and the page in a browser."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cupre_d2.config import default_config
from cupre_d2.experiments.deep_clustering import html
from cupre_d2.experiments.deep_clustering.grid import Cell, Experiment, Grid
from cupre_d2.experiments.deep_clustering.outcome import Outcome
from cupre_d2.experiments.deep_clustering.scores import EvaluatedSets, Row
from cupre_d2.experiments.results import Origin
from cupre_d2.experiments.tasks import Task
from tests.report.conftest import FOUND, NAMES, TRUE, annotation, result, write_results

SETS = EvaluatedSets(("seen",), "cells_test", {"seen": 1, "cells_test": 1})
# The largest k is not the last.
GRID = Grid(("kmeans", "neural_gas"), (50, 5), (3, 0))


@dataclass(frozen=True)
class Written(Task):
    """Detections are where `write_results` has put them."""

    def detections(self, dataset: str) -> Path:
        return self.folder / "inference" / dataset / "instances_results.json"


def row(cell: Cell | None, score: float) -> Row:
    metrics = {"labels": {"DSB2018": score}}
    return Row(cell, SETS, {"seen": metrics, "cells_test": metrics}, {"type_entropy_std": 0.25} if cell else {})


@pytest.fixture()
def outcome(register: Callable[..., None], tmp_path: Path) -> Outcome:
    register("cells_test", {key: [annotation(box) for box in boxes] for key, boxes in TRUE.items()}, NAMES)
    experiment = Experiment("cells", Path("configs"), GRID)
    tasks: dict[Cell | None, Task] = {}
    for number, cell in enumerate([None, *experiment.cells()]):
        tasks[cell] = Written(f"task-{number}", "clustering", "t", tmp_path / f"a task {number}", "", (), 80)
        write_results(tasks[cell].folder, "cells_test", [result(*one) for one in FOUND[min(number, 2) :]])
    tasks[None].report.write_text("")
    rows = [row(cell, 10.0 * cell.seed) for cell in experiment.cells()]
    (tmp_path / "docs").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "docs/table_latents.png")
    origin = Origin("python x.py '<i>'", "abc", {"torch": "2"})
    return Outcome(experiment, origin, tmp_path / "docs" / "table", default_config(), row(None, 12.0), rows, tasks)


def test_before_and_after_is_the_first_seed_with_the_most_clusters(outcome: Outcome) -> None:
    shown = outcome.before_and_after()
    assert list(shown) == ["baseline", "kmeans, k 50", "neural_gas, k 50"]
    assert shown["kmeans, k 50"] is outcome.tasks[Cell("kmeans", 50, 3)]


def test_text(outcome: Outcome) -> None:
    page = html.render(outcome)
    assert "2 algorithms × 2 numbers of clusters × 2 seeds" in page and "cells_test (1 images)" in page
    assert "15.0 ± 21.2 (+3.0)" in page and "MAP, unknown types" in page and "Normalised entropy" in page
    assert "python x.py &#39;&lt;i&gt;&#39;" in page and "data:image/png;base64," in page
    (link,) = re.findall(r'href="([^"]*)"', page)
    assert link == "../a%20task%200/report.html"
    assert not re.search(r"https?:|<link|@import|url\(", page)


def test_a_missing_figure_is_logged(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> None:
    outcome.beside("_latents.png").unlink()
    assert outcome.write_report(html.render) is None
    assert "table_latents.png" in caplog.text


@pytest.mark.slow
def test_in_a_browser(visit: Callable[[Path], AbstractContextManager[Any]], outcome: Outcome) -> None:
    path = outcome.write_report(html.render)
    assert path is not None
    with visit(path) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator(".chart svg").count() == 4
        assert page.evaluate("document.querySelector('.figure').naturalWidth") == 4
        totals = page.locator(".total").all_text_contents()
        assert len(totals) == 3 and totals[0].startswith("2 found, 6 missed")
