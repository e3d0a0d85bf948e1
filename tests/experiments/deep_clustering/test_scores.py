"""What is read of finished runs, and what the tables make of it."""

import json
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from cupre_d2.config import default_config
from cupre_d2.engine.results import write_json
from cupre_d2.errors import ConfigError, ResultsError
from cupre_d2.experiments.deep_clustering import series, tables
from cupre_d2.experiments.deep_clustering.grid import Cell
from cupre_d2.experiments.deep_clustering.scores import EvaluatedSets, Row, read_row
from cupre_d2.experiments.tasks import Task

SETS = EvaluatedSets(("k",), "u", {"k": 1, "u": 3})


def metrics(score: float) -> dict:
    return {"bbox": {"AP": 0.0}, "segm": {"AP": 0.0}, "labels": {"DSB2018": score}}


def row(cell: Cell | None, known: float, unknown: float, **statistics: float) -> Row:
    return Row(cell, SETS, {"k": metrics(known), "u": metrics(unknown)}, statistics)


BASELINE = row(None, 40.0, 20.0)
ROWS = [
    row(Cell("neural_gas", 50, 0), 41.0, 22.0, type_entropy_std=0.2),
    row(Cell("neural_gas", 50, 1), 43.0, 26.0, type_entropy_std=0.4),
    row(Cell("kmeans", 5, 0), 30.0, 20.0, type_entropy_std=0.1),
    row(Cell("neural_gas", 5, 0), 40.0, 20.0, type_entropy_std=0.1),
]


def test_all_is_the_mean_over_images() -> None:
    assert [BASELINE.value(part) for part in ("known", "unknown", "all")] == [40.0, 20.0, 25.0]
    assert BASELINE.plain()["algorithm"] == "baseline"
    plain = ROWS[0].plain()
    assert (plain["algorithm"], plain["clusters"], plain["seed"]) == ("neural_gas", 50, 0)
    assert plain["statistics"] == {"type_entropy_std": 0.2} and plain["MAP"]["known"] == 41.0


def test_tables() -> None:
    assert tables.headline(BASELINE, ROWS).body == [
        ["baseline", "-", "40.0", "20.0", "25.0", "1"],
        ["neural_gas", "50", "42.0 ± 1.4 (+2.0)", "24.0 ± 2.8 (+4.0)", "28.5 ± 2.5 (+3.5)", "2"],
        ["kmeans", "5", "30.0 (-10.0)", "20.0 (+0.0)", "22.5 (-2.5)", "1"],
        ["neural_gas", "5", "40.0 (+0.0)", "20.0 (+0.0)", "25.0 (+0.0)", "1"],
    ]
    first = tables.statistics(ROWS).body[0]
    assert first[:3] == ["neural_gas", "50", "-"] and first[-1] == "0.3"


def test_curves_go_by_number_of_clusters() -> None:
    known, unknown, _ = series.scores(BASELINE, ROWS)
    assert (known.baseline, unknown.baseline) == (40.0, 20.0)
    gas, means = known.series
    assert gas.algorithm == "neural_gas" and [place.clusters for place in gas.places] == [5, 50]
    assert (gas.places[1].values, gas.places[1].mean) == ([41.0, 43.0], 42.0)
    assert gas.places[1].spread == pytest.approx(2**0.5)
    assert means.algorithm == "kmeans" and [place.clusters for place in means.places] == [5]
    assert [place.mean for place in series.entropies(ROWS).series[0].places] == [0.1, pytest.approx(0.3)]


def config(**changes: object) -> CfgNode:
    cfg = default_config()
    values = {"TEST": ("a", "b"), "UNLABELED": ("b",)} | changes
    cfg.DATASETS.TEST, cfg.DATASETS.UNLABELED = values["TEST"], values["UNLABELED"]
    cfg.TEST.EVALUATORS = values.get("EVALUATORS", ("labels", "cell_coco"))
    return cfg


def test_known_is_what_is_not_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"a": [{}], "b": [{}, {}]}
    monkeypatch.setattr("cupre_d2.experiments.deep_clustering.scores.get_records", records.get)
    assert EvaluatedSets.of(config(), config()) == EvaluatedSets(("a",), "b", {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TEST": ("b",)}, "DATASETS.TEST .*expected one data set that is clustered"),
        ({"UNLABELED": ("c",)}, "DATASETS.TEST .*expected one data set that is clustered"),
        ({"UNLABELED": ("a", "b"), "TEST": ("a", "b", "c")}, "DATASETS.TEST .*expected one data set that is clustered"),
        ({"EVALUATORS": ("cell_coco",)}, "TEST.EVALUATORS .*expected labels and cell_coco"),
    ],
)
def test_configs_that_do_not_measure_both(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluatedSets.of(config(**changes), config(**changes))


@pytest.mark.parametrize(("key", "value"), [("TEST", ("b", "a")), ("EVALUATORS", ("labels",))])
def test_both_networks_are_measured_alike(key: str, value: tuple) -> None:
    with pytest.raises(ConfigError, match=f"{key} .*of the network before clustering; expected what is evaluated after"):
        EvaluatedSets.of(config(**{key: value}), config())


def finished(tmp_path: Path, labels: dict, logged: list[dict]) -> Task:
    task = Task("clustering-1", "clustering", "t", tmp_path, "", (), 10)
    of_set = {**metrics(0.0), "labels": labels}
    record = {"name": "clustering", "trainer": "t", "seconds": 1.0, "iterations": 10, "metrics": {"k": of_set, "u": of_set}}
    write_json(task.stage_folder / "stage.json", record)
    (task.stage_folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in logged))
    task.checkpoint.write_bytes(b"")
    return task


def test_what_a_run_has_left(tmp_path: Path) -> None:
    logged = [
        {"iteration": 0, "clusters/entropy": 0.5},
        {"iteration": 5, "clusters/entropy": 0.75},
        {"iteration": 9, "lr": 1},
    ]
    cell = Cell("kmeans", 5, 0)
    found = read_row(cell, finished(tmp_path, {"DSB2018": 7.0}, logged), SETS)
    assert found.value("all") == 7.0 and found.statistics == {"entropy": 0.75}
    assert read_row(None, finished(tmp_path, {"DSB2018": 7.0}, []), SETS).statistics == {}
    with pytest.raises(ResultsError, match="metrics.json: broken .no statistics of clusters"):
        read_row(cell, finished(tmp_path, {"DSB2018": 7.0}, []), SETS)
    with pytest.raises(ResultsError, match="stage.json: broken .no DSB2018 score of k"):
        read_row(cell, finished(tmp_path, {}, logged), SETS)
