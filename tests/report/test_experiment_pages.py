"""The pages of a table: Markdown with its figures, and the report, its text and in a browser."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cupre_d2.data import get_records
from cupre_d2.experiments import cupre, plots
from cupre_d2.experiments.blocks import Block, Gallery, Heading, Links, Plot, write_markdown, write_report
from cupre_d2.experiments.frames import tidy
from cupre_d2.experiments.origin import Origin, write_numbers
from cupre_d2.experiments.tables import TABLES, Experiment, FinishedRun, FinishedTable
from cupre_d2.experiments.tasks import EvaluationTask, Task
from cupre_d2.report import detections
from cupre_d2.report.detections import read_images
from cupre_d2.report.matching import match_image
from tests.report.conftest import FOUND, NAMES, TRUE, annotation, result, write_results

ARMS = {"coco": 10.0, "cuprepp": 12.5, "<b>cupre</b>": float("nan")}
ORIGIN = Origin("python x.py '<i>'", "new", {"torch": "2"}).of_runs(["abc", "old", "abc"])
CONFIG = {"INPUT": {"PERCENTILES": [0.1, 99.9]}, "TEST": {"CELL_COCO": {"USE_CATS": True}}}


class Small(Experiment):
    def one_of(self, role: str) -> str:
        return f"cells_{role}"


@dataclass(frozen=True)
class Written(EvaluationTask):
    """Detections are where `write_results` has put them."""

    def detections(self) -> Path:
        return self.task.folder / "inference" / self.dataset / "instances_results.json"


@pytest.fixture()
def finished(register: Callable[..., None], tmp_path: Path) -> FinishedTable:
    """Three arms, one seed; the first run alone has a report of its own."""
    register("cells_test", {key: [annotation(box) for box in boxes] for key, boxes in TRUE.items()}, NAMES)
    table, runs, rows, entries = TABLES["cupre"], [], [], []
    for number, (arm, ap) in enumerate(ARMS.items()):
        config = "{INPUT: {PERCENTILES: [0.1, 99.9]}, TEST: {CELL_COCO: {USE_CATS: true}}}"
        task = Task(f"finetune-{number}", "finetune", tmp_path / "stages" / f"a task {number}", config, (), 80)
        write_results(task.folder, "cells_test", [result(*one) for one in FOUND[number:]])
        runs.append(FinishedRun(table.run(arm, 5, 0, 0.1), task, {"cells_test": Written(task, "cells_test")}))
        metrics = {"segm": {"AP": ap}, "bbox": {"AP": ap}}
        rows.append((runs[-1].run._asdict(), {"cells_val": metrics, "cells_test": metrics}))
        points = [(40, 5.0, 3.0), (80, 10.0, 7.0)]
        curve = [dict(zip(("iterations", "epochs", "ap"), point, strict=True)) for point in points]
        entries.append({"validation_curve": curve})
    runs[0].task.report.write_text("")
    grid = {"arms": tuple(ARMS), "percents": (5,), "seeds": (0,), "learning_rates": (0.1,)}
    (tmp_path / "docs").mkdir()
    return FinishedTable(Small(table, "cells", Path("configs"), grid), runs, entries, tidy(rows))


def report(folder: Path, blocks: Sequence[Block]) -> Path:
    path = write_report(folder / "docs/table", "cells: arms", "3 arms × 1 seeds", ORIGIN, blocks)
    assert path is not None and path.name == "table_report.html"
    return path


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S))).split())


def test_report(finished: FinishedTable, tmp_path: Path) -> None:
    page = report(tmp_path, finished.experiment.table.blocks(finished)).read_text()
    text = text_of(page)
    assert "3 arms × 1 seeds Average precision" in text
    assert "coco 10.0 10.0 cuprepp 12.5 12.5 <b>cupre</b> nan nan" in text
    assert "cuprepp +2.5 (n 1)" in text and "5 % annotated" in text and "Ablation What the parts" in text
    assert "python x.py '<i>'" in text and "torch 2" in text and "commit abc, old" in text
    assert re.findall(r'href="([^"#]+)"', page) == ["../stages/a%20task%200/report.html"]
    assert not re.search(r"https?:|<link|@import|url\([^#]|<b>cupre", page)
    assert page.count("<svg viewBox") >= 3


def test_markdown_shows_its_figures(finished: FinishedTable, tmp_path: Path) -> None:
    results = tmp_path / "docs/table"
    write_markdown(results, "Title", ORIGIN, finished.experiment.table.blocks(finished))
    text = results.with_suffix(".md").read_text()
    assert text.startswith("# Title\n\n```\npython x.py '<i>'\n```\n\nCommit abc, old. Every number is in [table.json]")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == ["table.png", "table_epochs.png", "table_ablation.png", "table_arms.jpg"]
    assert all((results.parent / name).is_file() for name in shown)
    assert "report.html" not in text


def test_without_ablation(finished: FinishedTable) -> None:
    frame = finished.frame[finished.frame["arm"] == "coco"]
    blocks = finished.experiment.table.blocks(replace(finished, frame=frame))
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    assert "Ablation" not in headings and "Runs" in headings


def test_a_page_takes_in_what_people_have_noted(tmp_path: Path) -> None:
    write_markdown(tmp_path / "table", "Title", ORIGIN, ["The end."])
    assert (tmp_path / "table.md").read_text().split("\n\n")[3:] == ["The end.\n"]
    (tmp_path / "table_notes.md").write_text("Two seeds only.\n")
    write_markdown(tmp_path / "table", "Title", ORIGIN, ["The end."])
    assert (tmp_path / "table.md").read_text().split("\n\n")[3:] == ["Two seeds only.", "The end.\n"]


def test_numbers_keep_where_they_are_from(finished: FinishedTable, tmp_path: Path) -> None:
    """Of commits, those of the runs too: pages are made anew long after."""
    write_numbers(tmp_path / "t", ORIGIN, {"table": "cupre"}, [{"seed": 0}], finished.frame)
    text = (tmp_path / "t.json").read_text()
    assert '"commit": "new"' in text and '"commits": [\n    "abc",\n    "old"\n  ]' in text
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + len(finished.frame)


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("tools/reproduce.py", "python tools/reproduce.py --arms 'a b'"),
        ("/env/bin/cupre-d2", "cupre-d2 --arms 'a b'"),
        ("/env/lib/cupre_d2/__main__.py", "python -m cupre_d2 --arms 'a b'"),
    ],
)
def test_the_command_is_as_it_was_typed(script: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [script, "--arms", "a b"])
    assert Origin.of_this_process().command == command


def test_a_missing_file_is_logged(finished: FinishedTable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished.runs[0].detections("cells_test").unlink()
    blocks = finished.experiment.table.blocks(finished)
    assert write_report(tmp_path / "docs/table", "x", "y", ORIGIN, blocks) is None
    assert "instances_results.json" in caplog.text


def test_images_that_are_not_asked_for_are_not_matched(finished: FinishedTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor kept: with the detections of all images, a large data set would not fit into memory."""
    matched = []

    def match(record: dict, *rest: Any) -> detections.ImageMatch:
        matched.append(record["image_id"])
        return match_image(record, *rest)

    monkeypatch.setattr(detections, "match_image", match)
    (image,) = read_images(finished.runs[0].detections("cells_test"), "cells_test", True, [2])
    assert matched == [image.record["image_id"]] == [2]


@pytest.mark.parametrize(("score", "drawn"), [(0.9, True), (0.4, False)])
def test_colours(score: float, drawn: bool, register: Callable[..., None], tmp_path: Path) -> None:
    register("cells", {1: [annotation((5, 5, 10, 10)), annotation((40, 5, 10, 10))]}, NAMES)
    found = [result(1, (5, 5, 10, 10), score), result(1, (60, 40, 10, 10), score)]
    images = read_images(write_results(tmp_path, "cells", found), "cells", True, [1])
    axes = plots.gallery({"one": images, "two": images}, (0.1, 99.9)).axes[0]
    canvas = np.asarray(axes.get_images()[0].get_array())
    has = {name: (canvas == getattr(plots, name)).all(-1).any() for name in ("FOUND", "FALSE", "MISSED")}
    assert has == {"FOUND": drawn, "FALSE": drawn, "MISSED": True}
    assert axes.get_xlabel() == ("1 found, 1 false, 1 missed" if drawn else "0 found, 0 false, 2 missed")
    assert len(axes.texts) == (2 if drawn else 0)


def test_pictures_have_the_contrast_that_the_model_saw(register: Callable[..., None], tmp_path: Path) -> None:
    register("dark", {1: []}, NAMES)
    file = Path(get_records("dark")[0]["file_name"])
    Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)).save(file)
    found = write_results(tmp_path, "dark", [])
    for percentiles, brightest in (([0.1, 99.9], 255), ([], 19)):
        config = {**CONFIG, "INPUT": {"PERCENTILES": percentiles}}
        gallery = Gallery({"one": found}, "dark", [1], config, "_arms.jpg", "arms")
        shown = plots.gallery({"one": read_images(found, "dark", True, [1])}, gallery.percentiles)
        assert np.asarray(shown.axes[0].get_images()[0].get_array()).max() == brightest


def plot() -> Figure:
    figure = Figure((13, 4))
    figure.add_subplot().plot([0, 1], [1, 2])
    return figure


@pytest.mark.slow
def test_in_a_browser(visit: Callable[[Path], AbstractContextManager[Any]], finished: FinishedTable, tmp_path: Path) -> None:
    pictures = cupre.pictures(finished)
    blocks: list[Block] = [Heading("One"), Plot(plot(), ".png", "wide"), Plot(plot(), "_map.png", "map", raster=True)]
    with visit(report(tmp_path, [*blocks, pictures, Links({"none": tmp_path / "none"})])) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('.figure').naturalWidth") == 1560
        totals = page.locator(".total").all_text_contents()
        assert len(totals) == 3 and totals[0].startswith("2 found, 6 missed, 2 false; recall 25.0 %")
        page.locator("[name=level]").fill("0")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.locator(".total").first.text_content().startswith("3 found, 5 missed, 2 false")
        colour = "getComputedStyle(document.querySelector('.scroll svg')).fill"
        light = page.evaluate(colour)
        page.locator("#theme").click()
        assert page.evaluate(colour) != light
