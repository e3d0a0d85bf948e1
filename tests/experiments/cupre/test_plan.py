"""What runs, and what is said of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cupre_d2.engine.results import write_json
from cupre_d2.experiments.cupre.grid import Cell, Experiment, Grid
from cupre_d2.experiments.cupre.plan import Plan
from cupre_d2.experiments.tasks import Task

GRID = Grid(("scratch", "coco"), (5,), (0, 1), (0.1, 0.2))


class Planner:
    @staticmethod
    def plan(cfg: object) -> int:
        return 10


@pytest.fixture()
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Plan]:
    """Made anew at each call, as by the same command; input is not checked."""
    monkeypatch.setattr("cupre_d2.experiments.tasks.trainer_class", lambda stage: Planner)
    return lambda: Plan(Experiment("bbbc038", Path("configs/mini"), GRID), tmp_path)


def finish(task: Task, ap: float, seconds: float = 60.0) -> None:
    metrics = {"bbbc038_val": {"segm": {"AP": ap}, "bbox": {"AP": ap}}}
    record = {"name": task.stage, "trainer": task.trainer, "seconds": 1.0, "iterations": 10, "metrics": metrics}
    write_json(task.stage_folder / "stage.json", record)
    task.checkpoint.write_bytes(b"")
    write_json(task.timing, {"seconds": seconds})


def test_runs_take_the_rate_that_was_best(plan: Callable[[], Plan]) -> None:
    one = plan()
    assert len(one.trials) == 4 and one.rates() == {}
    assert {cell.learning_rate for cell in one.runs()} == {0.1}
    for cell, task in one.trials.items():
        if cell.arm == "coco":
            finish(task, 10 * cell.learning_rate)
    assert one.rates() == {("coco", 5): 0.2}
    assert [(cell.arm, cell.seed, cell.learning_rate) for cell in one.runs()] == [
        ("scratch", 0, 0.1),
        ("scratch", 1, 0.1),
        ("coco", 0, 0.2),
        ("coco", 1, 0.2),
    ]
    assert one.runs()[Cell("coco", 5, 0, 0.2)] is one.trials[Cell("coco", 5, 0, 0.2)]


def test_what_they_start_from_comes_first(plan: Callable[[], Plan]) -> None:
    one = plan()
    tasks = list(one.with_needs(one.trials.values()).values())
    assert [task.stage for task in tasks] == [
        *["finetune_bbbc038_5pct"] * 2,
        "coco_pretrain",
        *["finetune_bbbc038_5pct"] * 2,
    ]


def test_lines_and_times(plan: Callable[[], Plan]) -> None:
    lines = plan().lines(1)
    # Five tasks, two more of the second seed, an evaluation of each run.
    assert len(lines) == 12 and sum("learning rate to be chosen" in line for line in lines) == 4
    assert lines[-1] == "11 of 11 to run, about 0 min left and 11 tasks of which nothing is measured yet"
    for task in plan().with_needs(plan().trials.values()).values():
        finish(task, 1.0, seconds=120.0)
    lines = plan().lines(2)
    assert sum(line.endswith(", done") for line in lines) == 5 and not any("to be chosen" in line for line in lines)
    assert sum(line.endswith("10 iterations, about 2.0 min") for line in lines) == 2
    assert lines[-1] == "6 of 11 to run, about 2 min left and 4 tasks of which nothing is measured yet"
    assert plan().outlook(2) == "5 of 11 done, about 2 min left and 4 tasks of which nothing is measured yet"
    tests = list(plan().tests().values())
    write_json(tests[0].folder / "evaluation.json", {"metrics": {}})
    write_json(tests[0].timing, {"seconds": 30.0})
    assert plan().lines(1)[-1] == "5 of 11 to run, about 6 min left"
