"""Results that are there are not lost to another experiment."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cupre_d2.errors import ConfigError
from cupre_d2.experiments.cupre.grid import Experiment, Grid
from cupre_d2.experiments.cupre.outcome import Outcome
from cupre_d2.experiments.results import Origin, check_earlier

GRID = Grid(("scratch", "coco"), (5.0, 10.0), (0, 1), (0.1,))
EXPERIMENT = Experiment("bbbc038", Path("configs/mini"), GRID, ("finetune.SOLVER.MAX_ITER", "80"))


def save(experiment: Experiment, results: Path) -> None:
    Outcome(experiment, Origin("command", "commit", {}), results, [], {}).save([])


def test_the_same_and_a_larger_grid_may_take_its_place(tmp_path: Path) -> None:
    results = tmp_path / "v1.0"
    check_earlier(results, EXPERIMENT.identity())
    save(EXPERIMENT, results)
    assert json.loads((tmp_path / "v1.0.json").read_text())["dataset"] == "bbbc038"
    check_earlier(results, EXPERIMENT.identity())
    larger = replace(GRID, arms=("scratch", "coco", "cupre"), percents=(5, 10, 20), seeds=(0, 1, 2))
    check_earlier(results, replace(EXPERIMENT, grid=larger).identity())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "livecell"}, "v1.0.json: results of another dataset, bbbc038; expected livecell; name another file"),
        ({"folder": Path("configs")}, "another configs, mini; expected configs"),
        ({"overrides": ()}, "another overrides, .'finetune.SOLVER.MAX_ITER', '80'.; expected"),
        ({"grid": replace(GRID, seeds=(0, 2))}, r"another grid, with seeds \[1\]; name another file with --results"),
        ({"grid": replace(GRID, arms=("coco",))}, r"another grid, with arms \['scratch'\]"),
    ],
)
def test_results_of_another_experiment(changes: dict, message: str, tmp_path: Path) -> None:
    save(EXPERIMENT, tmp_path / "v1.0")
    with pytest.raises(ConfigError, match=message):
        check_earlier(tmp_path / "v1.0", replace(EXPERIMENT, **changes).identity())


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"grid": 3}', '{"grid": {"arms": 3}}'])
def test_what_is_no_results_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ConfigError, match="x.json: no results of reproduce.py"):
        check_earlier(tmp_path / "x", EXPERIMENT.identity())


def test_files_of_before_the_data_set_was_kept(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"grid": vars(GRID), "runs": []}))
    check_earlier(tmp_path / "x", EXPERIMENT.identity())


def test_results_of_another_table(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"dataset": "bbbc038", "grid": {"arms": ["coco"]}, "runs": []}))
    with pytest.raises(ConfigError, match="x.json: results of another table, cupre; expected neural_gas"):
        check_earlier(tmp_path / "x", {"table": "neural_gas", "dataset": "bbbc038", "grid": {"clusters": (5,)}})


def test_a_page_takes_in_what_people_have_noted(tmp_path: Path) -> None:
    outcome = Outcome(EXPERIMENT, Origin("python x.py", "abc", {}), tmp_path / "table", [], {})
    title, command, commit = outcome.header("Title")
    assert (title, command) == ("# Title", "```\npython x.py\n```") and "Commit abc" in commit
    (tmp_path / "table_notes.md").write_text("Two seeds only.\n")
    assert outcome.header("Title")[3:] == ["Two seeds only."]


def test_commits_are_those_of_the_runs(tmp_path: Path) -> None:
    """Pages are made anew long after."""
    origin = Origin("command", "new", {}).of_runs(["old", "older", "old"])
    outcome = Outcome(EXPERIMENT, origin, tmp_path / "table", [], {})
    assert "Commit old, older." in outcome.header("Title")[2]
    outcome.save([])
    kept = json.loads((tmp_path / "table.json").read_text())
    assert (kept["commit"], kept["commits"]) == ("new", ["old", "older"])
