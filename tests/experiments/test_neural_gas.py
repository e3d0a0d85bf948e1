"""What the table of deep clustering reads of finished runs, and what it shows of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from matplotlib import image as png

from cupre_d2.config import default_config
from cupre_d2.engine.results import write_json
from cupre_d2.engine.single_phase import build_network
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import CheckpointError, ConfigError, ResultsError
from cupre_d2.experiments import latents, neural_gas
from cupre_d2.experiments.frames import tidy, where
from cupre_d2.experiments.neural_gas import EvaluatedSets
from cupre_d2.experiments.tables import TABLES, FinishedRun
from cupre_d2.experiments.tasks import Task

TABLE: Any = TABLES["neural_gas"]
SETS = EvaluatedSets(("k",), "u", {"k": 1, "u": 3})


@pytest.fixture(autouse=True)
def _sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_gas, "evaluated_sets", lambda experiment: SETS)


def finished(known: float, unknown: float | None, *values: Any, **statistics: float) -> Any:
    def metrics() -> dict:
        return {"k": {"labels": {"DSB2018": known}}, "u": {"labels": {"DSB2018": unknown}, "segm": {"AP": 0.0}}}

    return SimpleNamespace(run=TABLE.run(*values), metrics=metrics, statistics=statistics)


RUNS = [
    finished(40.0, 20.0, "baseline"),
    finished(41.0, 22.0, "neural_gas", 50, 0, type_entropy_std=0.2),
    finished(43.0, 26.0, "neural_gas", 50, 1, type_entropy_std=0.4),
    finished(30.0, 20.0, "kmeans", 5, 0, type_entropy_std=0.1),
    finished(40.0, 20.0, "neural_gas", 5, 0, type_entropy_std=0.1),
]


def test_all_is_the_mean_over_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_gas, "cluster_statistics", lambda one: one.statistics)
    baseline, run = (TABLE.entry(None, one) for one in RUNS[:2])
    assert baseline["algorithm"] == "baseline" and "clusters" not in baseline and baseline["statistics"] == {}
    assert baseline["MAP"] == {"known": 40.0, "unknown": 20.0, "all": 25.0}
    assert (run["algorithm"], run["clusters"], run["seed"]) == ("neural_gas", 50, 0)
    assert run["statistics"] == {"type_entropy_std": 0.2} and set(run["test"]) == {"k", "u"}


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_gas, "cluster_statistics", lambda one: one.statistics)
    frame = tidy((one.run._asdict(), TABLE.metrics(None, one)) for one in RUNS)
    headline = neural_gas.headline(where(frame, metric="MAP"), {"known": 40.0, "unknown": 20.0, "all": 25.0})
    assert headline.columns.tolist() == ["clusters by", "k", "known", "unknown", "all", "seeds"]
    assert headline.to_numpy().tolist() == [
        ["baseline", "-", "40.0", "20.0", "25.0", "1"],
        ["neural_gas", "50", "42.0 ± 1.4 (+2.0)", "24.0 ± 2.8 (+4.0)", "28.5 ± 2.5 (+3.5)", "2"],
        ["kmeans", "5", "30.0 (-10.0)", "20.0 (+0.0)", "22.5 (-2.5)", "1"],
        ["neural_gas", "5", "40.0 (+0.0)", "20.0 (+0.0)", "25.0 (+0.0)", "1"],
    ]
    first = neural_gas.statistics_table(where(frame, task="clusters")).to_numpy().tolist()[0]
    assert first[:3] == ["neural_gas", "50", "-"] and first[-1] == "0.3"


def config(**changes: Any) -> CfgNode:
    cfg = default_config()
    values = {"TEST": ("a", "b"), "UNLABELED": ("b",)} | changes
    cfg.DATASETS.TEST, cfg.DATASETS.UNLABELED = values["TEST"], values["UNLABELED"]
    cfg.TEST.EVALUATORS = values.get("EVALUATORS", ("labels", "cell_coco"))
    return cfg


def test_known_is_what_is_not_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_gas, "get_records", {"a": [{}], "b": [{}, {}]}.get)
    sets = EvaluatedSets.of(config(), config())
    assert sets == EvaluatedSets(("a",), "b", {"a": 1, "b": 2})
    assert str(sets).startswith("Known: a (1 images). Unknown: b (2 images), ")


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


def left(tmp_path: Path, logged: list[dict], labels: dict) -> FinishedRun:
    task = Task("clustering-1", "clustering", tmp_path, "DATASETS: {TEST: [k, u]}", (), 10)
    metrics = {name: {"labels": labels} for name in "ku"}
    record = {"name": "clustering", "trainer": "t", "seconds": 1.0, "iterations": 10, "metrics": metrics}
    write_json(task.stage_folder / "stage.json", record)
    (task.stage_folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in logged))
    task.checkpoint.write_bytes(b"")
    return FinishedRun(TABLE.run("kmeans", 5, 0), task)


def test_what_a_run_has_left(tmp_path: Path) -> None:
    entropies = [{"iteration": 0, "clusters/entropy": 0.5}, {"iteration": 5, "clusters/entropy": 0.75}]
    logged: list[dict] = [*entropies, {"iteration": 9, "lr": 1}]
    entry = TABLE.entry(None, left(tmp_path, logged, {"DSB2018": 7.0}))
    assert entry["MAP"]["all"] == 7.0 and entry["statistics"] == {"entropy": 0.75}
    with pytest.raises(ResultsError, match="metrics.json: broken .no statistics of clusters"):
        TABLE.entry(None, left(tmp_path, [], {"DSB2018": 7.0}))
    with pytest.raises(ResultsError, match="stage.json: broken .no DSB2018 score of k"):
        TABLE.entry(None, left(tmp_path, logged, {}))


@pytest.fixture()
def cfg(small_datasets: Path, slim: list[str], monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setattr(latents, "SAMPLES", 12)
    opts = ["PIPELINE.TARGET", "bbbc038_types", *slim, "MODEL.WEIGHTS", "unet.pth"]
    _, (stage,) = load_stages("configs/mini/stages/clustering.yaml", opts)
    return stage.cfg


@pytest.fixture()
def checkpoint(cfg: CfgNode, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"model": build_network(cfg).state_dict()}, tmp_path / "unet.pth")
    return tmp_path / "unet.pth"


def test_map(cfg: CfgNode, checkpoint: Path, tmp_path: Path) -> None:
    sets = ("bbbc038_known_test", "bbbc038_unknown")
    found = latents.latent_map(cfg, checkpoint, sets)
    assert found.positions.shape == (12, 2) and np.isfinite(found.positions).all()
    assert found.thumbnails.shape == (12, 48, 48, 3) and found.thumbnails.dtype == np.uint8
    assert found.cell_types[:6] == ["dim"] * 6 and set(found.cell_types[6:]) == {"odd0", "odd1"}
    again = latents.latent_map(cfg, checkpoint, sets)
    assert np.array_equal(found.positions, again.positions) and np.array_equal(found.thumbnails, again.thumbnails)
    latents.draw_map(found).savefig(tmp_path / "map.png")
    # Frames in the colours of three types, C0 to C2.
    drawn = {tuple(colour) for colour in np.rint(png.imread(tmp_path / "map.png")[..., :3] * 255).astype(int).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= drawn


def test_a_map_needs_weights_of_this_network(cfg: CfgNode, checkpoint: Path) -> None:
    torch.save({"model": {"head.weight": torch.zeros(3)}}, checkpoint)
    with pytest.raises(CheckpointError):
        latents.latent_map(cfg, checkpoint, ("bbbc038_unknown",))
