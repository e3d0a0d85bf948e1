"""What runs, what is chosen, and what is said of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cupre_d2.engine.results import write_json
from cupre_d2.errors import ConfigError
from cupre_d2.experiments import cupre, neural_gas  # noqa: F401
from cupre_d2.experiments.plan import Plan
from cupre_d2.experiments.tables import TABLES, Experiment
from cupre_d2.experiments.tasks import Task

CUPRE, NEURAL_GAS = TABLES["cupre"], TABLES["neural_gas"]
GRID = {"arms": ("scratch", "coco"), "percents": (5,), "seeds": (0, 1), "learning_rates": (0.1, 0.2)}


class Planner:
    @staticmethod
    def plan(cfg: object) -> int:
        return 10


@pytest.fixture()
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Plan]:
    """Made anew at each call, as by the same command; input is not checked."""
    monkeypatch.setattr("cupre_d2.experiments.tasks.trainer_class", lambda stage: Planner)
    monkeypatch.setattr("cupre_d2.experiments.plan.get_records", lambda name: [])
    return lambda: Plan(Experiment(CUPRE, "bbbc038", Path("configs/mini"), GRID), tmp_path)


def finish(task: Task, ap: float | None, seconds: float = 60.0) -> None:
    metrics = {"bbbc038_val": {"segm": {"AP": ap}, "bbox": {"AP": 1.0}}}
    record = {"name": task.stage, "trainer": "t", "seconds": 1.0, "iterations": 10, "metrics": metrics}
    write_json(task.stage_folder / "stage.json", record)
    task.checkpoint.write_bytes(b"")
    write_json(task.timing, {"seconds": seconds})


def test_runs_take_the_rate_that_was_best(plan: Callable[[], Plan]) -> None:
    one = plan()
    assert len(one.trials) == 4 and one.chosen() == {}
    assert {run.learning_rate for run in one.runs()} == {0.1}
    for run, task in one.trials.items():
        if run.arm == "coco":
            finish(task, 10 * run.learning_rate)
    assert one.chosen() == {("coco", 5, None, None): 0.2}
    chosen = [("scratch", 5, 0, 0.1), ("scratch", 5, 1, 0.1), ("coco", 5, 0, 0.2), ("coco", 5, 1, 0.2)]
    assert list(one.runs()) == chosen
    assert one.runs()[CUPRE.run(*chosen[2])] is one.trials[CUPRE.run(*chosen[2])]


@pytest.mark.parametrize(("first", "second", "best"), [(7.0, 7.0, 0.1), (None, 0.0, 0.2), (float("nan"), None, 0.1)])
def test_of_equal_rates_the_lowest(first: float | None, second: float | None, best: float, plan: Callable) -> None:
    one = plan()
    for run, task in one.trials.items():
        finish(task, first if run.learning_rate == 0.1 else second)
    assert set(one.chosen().values()) == {best}


def test_stages_are_shared_and_arms_named(plan: Callable[[], Plan]) -> None:
    lines = plan().lines(1)
    # Five tasks, two more of the second seed, an evaluation of each run.
    assert len(lines) == 12 and [line.partition("-")[0] for line in lines[:3]] == ["finetune", "finetune", "coco_pretrain"]
    assert lines[0].endswith(": arm scratch, percent 5, seed 0, learning rate 0.1, 10 iterations, time unknown")
    assert lines[2].endswith(": arm coco, 10 iterations, time unknown")
    # Of the tests, none is decided.
    assert sum("learning rate to be chosen" in line for line in lines) == 2 + 4
    assert lines[-1] == "11 of 11 to run, time unknown: nothing like them is measured yet"


def test_times_are_measured(plan: Callable[[], Plan]) -> None:
    for task in plan()._list.with_needs(plan().trials.values()).values():
        finish(task, 1.0, seconds=120.0)
    lines = plan().lines(2)
    assert sum(line.endswith(", done") for line in lines) == 5 and not any("to be chosen" in line for line in lines)
    assert sum(line.endswith("10 iterations, about 2.0 min") for line in lines) == 2
    assert lines[-1] == "6 of 11 to run, about 2 min left and 4 tasks of which nothing is measured yet"
    tests = [test for tests in plan().tests().values() for test in tests.values()]
    write_json(tests[0].folder / "evaluation.json", {"metrics": {}})
    write_json(tests[0].timing, {"seconds": 30.0})
    assert plan().lines(1)[-1] == "5 of 11 to run, about 6 min left"


def clustering(slim: list[str], tmp_path: Path, *overrides: str) -> Plan:
    grid = {"algorithms": ("kmeans",), "clusters": (3, 6), "seeds": (0,)}
    return Plan(Experiment(NEURAL_GAS, "bbbc038", Path("configs/mini"), grid, (*slim, *overrides)), tmp_path)


def test_one_network_then_the_clusterings(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    made = clustering(slim, tmp_path, "unet.SOLVER.MAX_ITER", "3")
    unet, *clusterings = made.runs().values()
    assert [task.stage for task in made._list.tasks.values()] == ["unet", "clustering", "clustering"]
    assert [task.needs for task in clusterings] == [(unet.key,), (unet.key,)]
    assert not made.trials and not any(made.tests().values())
    lines = made.lines(2)
    assert lines[0].endswith(": algorithm baseline, 3 iterations, time unknown")
    assert ": algorithm kmeans, clusters 3, seed 0, " in lines[1] and lines[-1].startswith("3 of 3 to run")
    assert [task.settings["CLUSTERING"]["CLUSTERS"] for task in clusterings] == [3, 6]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("clustering.CLUSTERING.CLUSTERS", "20", "clustering.CLUSTERING.CLUSTERS: set by the lists of the table"),
        ("clustering.DATASETS.TEST", "('bbbc038_unknown',)", "DATASETS.TEST .*expected one data set that is clustered"),
        ("unet.TEST.EVALUATORS", "('cell_coco',)", "TEST.EVALUATORS .*of the network before clustering"),
        ("clustering.MODEL.WEIGHTS", "a.pth", "clustering.MODEL.WEIGHTS a.pth: expected those of the stage before"),
    ],
)
def test_refused(key: str, value: str, message: str, small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        clustering(slim, tmp_path, key, value)
