"""The tool's lines and exit codes; that what it measures can be measured."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from cupre_d2.errors import DatasetError


@pytest.fixture()
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend("tools")
    return importlib.import_module("benchmark")


@pytest.fixture()
def figure(tool: ModuleType) -> type:
    return importlib.import_module("benchmarks").Figure


@pytest.fixture()
def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Exit code and lines for a benchmark of given figures."""

    def run(figures: list, *options: str) -> tuple[int, list[str]]:
        monkeypatch.setitem(sys.modules, "benchmarks.fake", SimpleNamespace(run=lambda: figures))
        monkeypatch.setattr(tool, "NAMES", ["fake"])
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "fake", *options])
        return tool.main(), capsys.readouterr().out.splitlines()

    return run


def test_a_line_a_figure_and_the_deciding_one_last(run: Callable[..., Any], figure: type) -> None:
    figures = [figure("close", 0.9, "s", 1.0), figure("far", 0.1, "s", 1.0), figure("free", 7, "GiB")]
    assert run(figures)[0] == 0 and [line.split(":")[0] for line in run(figures)[1]] == ["close", "far", "free"]
    code, lines = run(figures, "--check")
    assert code == 0 and [line.split(":")[0] for line in lines] == ["far", "free", "close"]
    assert lines[-1] == "close: 0.9 s   (bar: at most 1: holds)" and lines[1] == "free: 7 GiB"


def test_a_missed_bar_decides(run: Callable[..., Any], figure: type) -> None:
    figures = [figure("missed", 9, "times", 10, "at least"), figure("held", 0.99, "s", 1.0)]
    assert run(figures)[0] == 0
    code, lines = run(figures, "--check")
    assert code == 1 and lines[-1] == "missed: 9 times   (bar: at least 10: MISSED)"


def test_bars_hold_at_equality_and_below_zero(figure: type) -> None:
    assert figure("x", 1, "s", 1).holds and figure("x", 1, "s", 1, "at least").holds
    assert figure("x", -2, "s", 1).holds and figure("x", 0, "s", 1).margin == float("inf")
    assert not figure("x", 0, "s", 1, "at least").holds and figure("x", 0, "s", 1, "at least").margin < 1


def test_each_benchmark_can_be_run(tool: ModuleType) -> None:
    assert {"data", "evaluation", "watershed"} < set(tool.NAMES)
    for name in tool.NAMES:
        assert callable(importlib.import_module(f"benchmarks.{name}").run)


def test_data_without_its_sample(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match="livecell_coco_train.json: no such file"):
        importlib.import_module("benchmarks.data").run()


@pytest.mark.real_data
def test_data_in_small(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = importlib.import_module("benchmarks.data")
    if not (Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / data.SAMPLE).is_file():
        pytest.skip(f"no {data.SAMPLE}")
    monkeypatch.setattr(data, "IMAGES", 12)
    monkeypatch.setattr(data, "INSTANCES", 3000)
    json_file = data._make(tmp_path)
    content = json.loads(json_file.read_text())
    assert len(content["images"]) == 12 and 3000 <= len(content["annotations"]) < 4500
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
    for what in ("detectron2", "ours", "2 workers"):
        data.child(what, str(json_file))
        measured = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert {"bytes"} < set(measured)
    DatasetCatalog.remove("big")
    MetadataCatalog.remove("big")


def test_evaluation_in_small(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours has pycocotools' numbers; a peer that is not installed is named."""
    evaluation = importlib.import_module("benchmarks.evaluation")
    peers = {"pycocotools": evaluation.PEERS["pycocotools"], "no_such_peer": ("no_such_peer.COCO", "no_such_peer.COCOeval")}
    for name, value in (("IMAGES", 2), ("CELLS", 60), ("DETECTIONS", 80), ("TURNS", 1), ("PEERS", peers)):
        monkeypatch.setattr(evaluation, name, value)

    def measured(what: str, folder: Path) -> dict[str, Any]:
        _, numbers = (evaluation._ours() if what == "ours" else evaluation._peer(what))(folder)
        return {"seconds": 1, "alone": 1, "bytes": 1, "numbers": numbers}

    monkeypatch.setattr(evaluation, "_measure", measured)
    apart, *others = evaluation.run()
    assert apart.holds and apart.value < 1e-9
    assert [str(figure) for figure in others if "no_such_peer" in figure.name] == ["no_such_peer: nan (not installed)"]
    for name in ("cells", "cells read"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.slow
def test_memory_in_small(tool: ModuleType) -> None:
    """AMT² holds its parts and no more; recomputing keeps less for the backward pass."""
    measure = importlib.import_module("benchmarks").measure
    memory = importlib.import_module("benchmarks.memory")
    config = str(Path("configs/mini/stages/amt2.yaml").resolve())
    # AdamW holds two numbers a weight where the parts count one.
    sgd = ("SOLVER.OPTIMIZER", "SGD", "AMT2.MOCO_SOLVER.OPTIMIZER", "SGD")
    state = measure("memory", f"state({sgd!r}, {config!r})")
    assert state["alive"] == pytest.approx(sum(state["parts"].values()), rel=0.02)
    kept = [measure("memory", f"activations('moco', {opts!r}, {config!r})") for opts in ((), memory.RECOMPUTE)]
    assert 0 < kept[1] < kept[0]


def test_share_of_the_convolutions_in_small(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = importlib.import_module("benchmarks.backbone")
    for name, value in (("SIZE", 64), ("THREADS", torch.get_num_threads()), ("ROUNDS", {50: 2}), ("WARM_UP", 1)):
        monkeypatch.setattr(backbone, name, value)
    backbone.convolutions(50)
    # Of times that differ: passes that are timed take longer than those they are compared with.
    assert 0.05 < float(capsys.readouterr().out) < 5


@pytest.mark.slow
def test_allocator_in_small(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Here without keeping memory, which would be for all of this process."""
    allocator = importlib.import_module("benchmarks.allocator")
    for name, value in (("STEPS", 2), ("WARM_UP", 0), ("BATCH", 1)):
        monkeypatch.setattr(allocator, name, value)
    allocator.steps(kept=False)
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert measured["seconds"] > 0 and measured["peak"] > 2**20
