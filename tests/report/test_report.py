import base64
import json
import logging
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from cupre_d2.engine import pipeline
from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.evaluation.build import as_text
from cupre_d2.report import PipelineResults, register_section, sections, write_report
from cupre_d2.report.detections import read_evaluation
from cupre_d2.report.pictures import DatasetPart
from cupre_d2.report.sections import duration, read_metrics
from tests.report.conftest import (
    DATASET,
    FOUND,
    HEIGHT,
    METRICS,
    NAMES,
    TRUE,
    WIDTH,
    annotation,
    change,
    result,
    write_output,
    write_results,
)


def page(folder: Path) -> str:
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text()


def datasets_of(folder: Path) -> list[DatasetPart]:
    return PipelineResults.read(folder).datasets


def text_of(html: str) -> str:
    without = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", without)).split())


def data_of(html: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(found)


def test_numbers(output: Path) -> None:
    text = text_of(page(output))
    assert f"{DATASET} bbox, % 41.3 62.0 - 33.3" in text
    assert f"{DATASET} segm, % 40.0 60.0 - 35.0" in text
    assert "AP-hela 12.5" in text
    assert "finetune 80 1 h 1 min DetectionTrainer" in text
    assert "torch 2.14.1" in text
    assert "MAX_ITER: 80" in text
    assert "python tools/train_net.py --config-file 'configs/my cells.yaml'" in text
    assert "Recall by cell size" in text
    assert "nan" not in text.lower()


def test_worst_first(output: Path) -> None:
    html = page(output)
    text = text_of(html)
    assert [text.index(NAMES[key]) for key in (3, 2, 1)] == sorted(text.index(name) for name in NAMES.values())
    assert f"{NAMES[3]} 0 found, 4 missed, 0 false" in text
    assert f"{NAMES[2]} 1 found, 2 missed, 1 false" in text
    assert f"{NAMES[1]} 1 found, 0 missed, 1 false" in text
    assert "All 3 images, 8 cells: 2 found, 6 missed, 2 false" in text
    (dataset,) = data_of(html)["datasets"]
    assert (dataset["found"][30], dataset["false"][30], dataset["cells"]) == (3, 2, 8)
    assert (dataset["found"][31], dataset["found"][96]) == (2, 0)
    assert [[level for _, level in picture["cells"]] for picture in dataset["pictures"]] == [[-1] * 4, [95, 30, -1], [90]]


def test_picture(output: Path) -> None:
    picture = datasets_of(output)[0].pictures[0]
    data = base64.b64decode(picture.jpeg.removeprefix("data:image/jpeg;base64,"))
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (HEIGHT, WIDTH, 3)


def test_nothing_is_loaded(output: Path) -> None:
    html = page(output)
    assert not re.search(r"https?:|\bwww\.", html)
    assert not re.search(r"<link|<iframe|@import|url\([^#]|\bfetch\(|XMLHttpRequest|\bhref=\"[^#]", html)
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'\bsrc="([^"]*)"', html))
    assert "default-src 'none'" in html


def test_text_of_others_stays_text(register: Callable[..., None], tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'"
    name = "</script><script>alert(2)<"
    register(name, {1: [annotation((5, 5, 10, 10))]}, {1: evil + ".png"})
    folder = write_output(tmp_path / "<b>out", {name: {"segm": {"AP": 1.0, f"AP-{evil}": 2.0}}}, [])
    results = json.loads((folder / "results.json").read_text())
    results["config"]["DATASETS"]["TEST"] = [evil]
    results["command"].append(evil)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "2_finetune/config.yaml").write_text(f"A: {evil}</pre></script>\n")
    register(evil, {1: [annotation((5, 5, 10, 10))]}, {1: evil + ".png"})
    file = folder / "2_finetune/inference" / evil / "instances_results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(result(1, (5, 5, 10, 10), 0.9)) + "\n")
    html = page(folder)
    assert html.count("<script") == html.count("</script>") == 2
    assert "<img src=x" not in html
    assert "<b>out" not in html
    text = text_of(html)
    assert text.count(evil) >= 4
    assert "<b>out" in text


def test_metrics_of_a_run_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    rows = [{"iteration": 19, "total_loss": 3}, {"iteration": 39, "total_loss": 2}, {"iteration": 39, "total_loss": 1}]
    file.write_text("\n".join(map(json.dumps, rows)) + '\n{"iteration": 59, "tot')
    assert [(row["iteration"], row["total_loss"]) for row in read_metrics(file)] == [(19, 3), (39, 1)]
    assert read_metrics(tmp_path / "none.json") == []


@pytest.mark.slow
def test_a_pipeline_ends_with_it(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    opts = [*slim, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", ""]
    pipeline.run(pipeline.prepare("configs/mini/scratch_bbbc038_5pct.yaml", opts))
    text = text_of((tmp_path / "report.html").read_text())
    assert "bbbc038_val segm, %" in text
    assert "Pictures, the worst first" in text
    assert "found" in text


def test_without_evaluation(tmp_path: Path) -> None:
    folder = write_output(tmp_path / "out", {}, [])
    html = page(folder)
    assert "The last stage was not evaluated" in html
    assert 'id="pictures"' not in html
    assert html.count("<script") == 1
    assert 'aria-label="Loss"' in html


def test_a_pipeline_of_moco_alone(tmp_path: Path) -> None:
    folder = write_output(tmp_path / "out", {}, ["not_registered"])
    change(folder, stages=json.loads((folder / "results.json").read_text())["stages"][:1])
    html = page(folder)
    assert re.findall(r'<section id="(\w+)">', html) == ["metrics", "training", "stages", "rerun"]
    assert 'aria-label="Loss"' in html and "SEED: 1" in html and "MAX_ITER: 80" not in html


def test_labels_alone_leave_no_detections(tmp_path: Path) -> None:
    folder = write_output(tmp_path / "out", {DATASET: {"labels": {"PQ": 50.0, "F1_50": 61.0}}}, [DATASET])
    text = text_of(page(folder))
    assert f"data set task PQ {DATASET} labels, % 50.0" in text
    assert "F1_50 61.0" in text


def test_several_datasets_share_the_pictures(output: Path, register: Callable[..., None]) -> None:
    for index in range(2):
        register(
            f"more{index}", {key: [annotation((5, 5, 10, 10))] for key in range(1, 9)}, {k: f"{k}.png" for k in range(1, 9)}
        )
        write_results(output / "2_finetune", f"more{index}", [])
    results = json.loads((output / "results.json").read_text())
    results["config"]["DATASETS"]["TEST"] += ["more0", "more1"]
    (output / "results.json").write_text(json.dumps(results))
    assert [len(dataset.pictures) for dataset in datasets_of(output)] == [3, 4, 4]


def test_size_stays_below_the_limit(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [picture.size for picture in datasets_of(output)[0].pictures]
    monkeypatch.setattr(sections, "PICTURE_BYTES", sum(sizes[:2]))
    assert len(datasets_of(output)[0].pictures) == 2


def test_crowded_images_stay_below_ten_megabytes(register: Callable[..., None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = [tuple(int(v) for v in (*rng.integers(0, 50, 2), *rng.integers(2, 9, 2))) for _ in range(2000)]
    names = {key: f"{key}.png" for key in range(1, 13)}
    register(DATASET, {key: [annotation(box) for box in boxes[:500]] for key in names}, names)
    folder = write_output(tmp_path / "out", METRICS, [DATASET])
    found = [result(key, box, float(score)) for key in names for box, score in zip(boxes, rng.random(2000), strict=True)]
    write_results(folder / "2_finetune", DATASET, found)
    pipeline = PipelineResults.read(folder)
    html = sections.page(pipeline)
    pictures = pipeline.datasets[0].pictures
    assert len(html.encode()) < 10_000_000
    # What a picture is taken to need is what it needs, within a few percent.
    assert sum(picture.size for picture in pictures) == pytest.approx(len(html.encode()), rel=0.1)


def test_category_ids_of_the_annotation_file(register: Callable[..., None], tmp_path: Path) -> None:
    truth = {1: [annotation((5, 5, 10, 10), category=1)]}
    register(DATASET, truth, NAMES, thing_dataset_id_to_contiguous_id={3: 0, 7: 1})
    file = write_results(tmp_path, DATASET, [result(1, (5, 5, 10, 10), 0.9, category=7)])
    assert read_evaluation(file, DATASET, True, 1).tally.found[50] == 1


def test_crowds_count_nowhere(register: Callable[..., None], tmp_path: Path) -> None:
    register(DATASET, {1: [annotation((5, 5, 30, 30), iscrowd=1), annotation((60, 5, 9, 9))]}, NAMES)
    folder = write_output(tmp_path / "out", METRICS, [DATASET])
    write_results(folder / "2_finetune", DATASET, [result(1, (10, 10, 5, 5), 0.9)])
    (dataset,) = datasets_of(folder)
    assert (dataset.tally.cells, dataset.tally.found[0], dataset.tally.false[0]) == (1, 0, 0)
    assert len(dataset.pictures[0].crowds) == len(dataset.pictures[0].cells) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([result(*one) for one in FOUND]), "expected one detection a line"),
        (json.dumps(result(77, (5, 5, 10, 10), 0.9)), "image_id 77 is not of 'report_test'"),
    ],
)
def test_foreign_results_file(
    register: Callable[..., None], tmp_path: Path, content: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    register(DATASET, {key: [annotation(box) for box in boxes] for key, boxes in TRUE.items()}, NAMES)
    folder = write_output(tmp_path / "out", METRICS, [DATASET])
    file = write_results(folder / "2_finetune", DATASET, [])
    file.write_text(content)
    with pytest.raises(DatasetError, match=message):
        datasets_of(folder)
    with caplog.at_level(logging.WARNING, logger="cupre_d2.report.sections"):
        html = page(folder)
    assert f"no section 'images' in the report: {file}" in caplog.text and message in caplog.text
    assert 'id="images"' not in html and 'id="metrics"' in html


def test_a_mistake_of_the_report_stops_nothing(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    (output / "results.json").write_text("{}")
    with caplog.at_level(logging.WARNING, logger="cupre_d2.report.sections"):
        assert write_report(output) is None
    assert "KeyError" in caplog.text
    assert not (output / "report.html").exists()


@pytest.fixture()
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, it alone has."""
    monkeypatch.setattr(sections, "_sections", dict(sections._sections))


@pytest.mark.usefixtures("registered")
def test_a_project_adds_a_section(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: Exception) -> None:
        raise error

    register_section("unread", lambda pipeline: fail(OSError("no such file: x.csv")))
    register_section("wrong", lambda pipeline: fail(ZeroDivisionError()))
    register_section("left_out", lambda pipeline: None)
    register_section("cells", lambda pipeline: Markup("<h2>Cells of {}</h2>").format(pipeline.stages[1].name + "<"))
    with caplog.at_level(logging.WARNING, logger="cupre_d2.report.sections"):
        html = page(output)
    ids = re.findall(r'<section id="(\w+)">', html)
    assert ids == ["metrics", "images", "recall", "training", "stages", "rerun", "cells"]
    assert "<h2>Cells of finetune&lt;</h2>" in html
    assert "no section 'unread' in the report: no such file: x.csv" in caplog.text and "ZeroDivisionError" in caplog.text
    with pytest.raises(ConfigError, match="report section 'cells' is registered already"):
        register_section("cells", lambda pipeline: None)


def test_metrics_that_are_not_percent(output: Path) -> None:
    counts = {"MAE": 1234.5678, "MAE_few-cells": 0.0123456, "bias": None}
    metrics = {DATASET: {"counts": counts, "speed": {"rate": 3.0}, "segm": {"AP": 40.04}}}
    change(output, metrics=metrics, units={"counts": "cells", "segm": "%", "speed": ""})
    text = text_of(page(output))
    assert f"task MAE MAE_few-cells bias {DATASET} counts, cells 1235 0.01235 -" in text
    assert f"{DATASET} speed 3 " in text and f"{DATASET} segm, % 40.0" in text


def test_what_was_best_is_drawn_while_training(output: Path) -> None:
    rows = [{"iteration": i, "x_val/counts/MAE": 9.0 - i, "x_val/counts/bias": 1.0} for i in range(3)]
    (output / "2_finetune/metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = json.loads((output / "results.json").read_text())["config"]
    config["TEST"]["BEST"] = {"DATASET": "x_val", "TASK": "counts", "METRIC": "MAE", "HIGHER": False}
    change(output, config=config, units={"counts": "cells"})
    html = page(output)
    assert 'aria-label="MAE while training"' in html and "MAE, cells" in html and "bias while" not in html


def test_pictures_have_the_contrast_that_the_model_saw(output: Path) -> None:
    config = json.loads((output / "results.json").read_text())["config"]
    Image.fromarray(np.tile(np.arange(100, 180, dtype=np.uint8), (HEIGHT, 1))).save(output.parent / NAMES[3])
    brightest = []
    for percentiles in ([0, 100], []):
        config["INPUT"]["PERCENTILES"] = percentiles
        change(output, config=config)
        data = base64.b64decode(datasets_of(output)[0].pictures[0].jpeg.removeprefix("data:image/jpeg;base64,"))
        brightest.append(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).max())
    assert brightest[0] > 250 and brightest[1] < 190


def test_some_of_the_stages(output: Path) -> None:
    """As of `train(only=["finetune"])`: the second stage alone is in results.json, and says where it is."""
    stage = json.loads((output / "results.json").read_text())["stages"][1]
    change(output, stages=[{**stage, "folder": "2_finetune"}])
    html = page(output)
    assert "MAX_ITER: 80" in html and f"{NAMES[2]} " in text_of(html) and 'aria-label="Loss"' in html


def test_texts() -> None:
    values = (None, float("nan"), 0.0, 99.96)
    assert [as_text(value, "%") for value in values] == ["-", "-", "0.0", "100.0"]
    assert [as_text(value, "cells") for value in values] == ["-", "-", "0", "99.96"]
    assert [duration(seconds) for seconds in (3.4, 61, 3600)] == ["3 s", "1 min 1 s", "1 h 0 min"]
