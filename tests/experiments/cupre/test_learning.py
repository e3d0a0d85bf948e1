"""The curve of a fine-tuning from what it has left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cupre_d2.engine.results import write_json
from cupre_d2.experiments.cupre.learning import Point, read_curve
from cupre_d2.experiments.tasks import Task


@pytest.fixture()
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """Finished, of 240 iterations with four images each of twelve that are annotated; with lines of metrics."""
    monkeypatch.setattr("cupre_d2.experiments.cupre.learning.get_records", lambda name: [{}] * {"few": 12}[name])

    def make(final: float | None, *lines: str) -> Task:
        config = "DATASETS: {TRAIN: [few]}\nSOLVER: {IMS_PER_BATCH: 4}\n"
        task = Task("finetune-1", "finetune", "DetectionTrainer", tmp_path, config, (), 240)
        metrics = {"cells_val": {"segm": {"AP": final}, "bbox": {"AP": 1.0}}}
        record = {"name": "finetune", "trainer": "t", "seconds": 1.0, "iterations": 240, "metrics": metrics}
        write_json(task.stage_folder / "stage.json", record)
        task.checkpoint.write_bytes(b"")
        if lines:
            (task.stage_folder / "metrics.json").write_text("\n".join(lines))
        return task

    return make


def line(iteration: int, **values: float) -> str:
    return json.dumps({"iteration": iteration, "total_loss": 1.0, **{f"cells_val/segm/{k}": v for k, v in values.items()}})


def test_periodic_values_and_the_last(task: Callable[..., Task]) -> None:
    # A killed run left half a line, and its second try repeats an evaluation.
    lines = [line(79, AP=3.0), line(99), line(79, AP=4.0), line(159, AP=5.0), line(179), '{"iteration": 19']
    curve = read_curve(task(6.0, *lines), "cells")
    assert curve == (Point(80, pytest.approx(80 / 3), 4.0), Point(160, pytest.approx(160 / 3), 5.0), Point(240, 80.0, 6.0))


def test_without_periodic_values(task: Callable[..., Task]) -> None:
    assert read_curve(task(6.0, line(19)), "cells") == (Point(240, 80.0, 6.0),)
    assert read_curve(task(6.0), "cells") == (Point(240, 80.0, 6.0),)


def test_what_is_not_defined_is_left_out(task: Callable[..., Task]) -> None:
    assert read_curve(task(None, line(79, AP=float("nan"))), "cells") == ()
