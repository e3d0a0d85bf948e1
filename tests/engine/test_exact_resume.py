"""A run that was stopped ends as one that was not: bit for bit, on a CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

KILLER = Path(__file__).with_name("killed_runs.py")
PIPELINE = """
PIPELINE:
  STAGES: [{stages}/coco_pretrain.yaml, {stages}/amt2.yaml, {stages}/finetune.yaml]
  TARGET: bbbc038
"""
SCHEDULE = {
    "coco_pretrain.SOLVER.MAX_ITER": 5,
    "amt2.AMT2.ROUNDS": 2,
    "amt2.AMT2.MOCO_ITERS": 3,
    "amt2.AMT2.COCO_ITERS": 4,
    "finetune.SOLVER.MAX_ITER": 6,
    "finetune.TEST.EVAL_PERIOD": 3,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.WARMUP_ITERS": 2,
    # Their statistics are state that no optimizer knows.
    "MODEL.RESNETS.NORM": "BN",
    "SEED": 3,
}


@pytest.fixture()
def pipeline_file(tmp_path: Path) -> Path:
    path = tmp_path / "cupre.yaml"
    path.write_text(PIPELINE.format(stages=Path("configs/mini/stages").resolve()))
    return path


def train(config: Path, output: Path, root: Path, slim: list[str], kills: int = 0, seed: int = 0, **more: Any) -> str:
    schedule = {**SCHEDULE, **more}
    opts = [*slim, *(str(item) for pair in schedule.items() for item in pair)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(KILLER), str(config), str(output), str(kills), str(seed), *opts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr + "".join(log.read_text()[-2000:] for log in logs(output))
    return done.stdout


def logs(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f"{output.name}_*.log"))


def same(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ by a bit; the seconds that training took may."""
    if where.endswith(".clock"):
        return []
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [place for key in one for place in same(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        return [place for pair in enumerate(zip(one, other, strict=True)) for place in same(*pair[1], f"{where}.{pair[0]}")]
    equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if equal else [where]


def check_equal(one: Path, other: Path) -> None:
    stages = sorted(path.name for path in one.glob("[0-9]_*"))
    assert stages == ["1_coco_pretrain", "2_amt2", "3_finetune"]
    for stage in stages:
        whole, resumed = (torch.load(folder / stage / "model_final.pth", weights_only=True) for folder in (one, other))
        assert same(whole, resumed) == [], stage
    best = [torch.load(folder / stages[-1] / "model_best.pth", weights_only=True) for folder in (one, other)]
    assert same(*best) == []
    assert results(one) == results(other)
    assert measured(one) == measured(other)


def results(folder: Path) -> dict[str, Any]:
    """results.json but for the seconds that were measured, the folder's name and the tests' command line."""
    text = re.sub(r'"seconds": [\d.e-]+', '"seconds": 0', (folder / "results.json").read_text()).replace(
        str(folder), "FOLDER"
    )
    return {key: value for key, value in json.loads(text).items() if key != "command"}


def measured(folder: Path) -> list[tuple[int, float]]:
    """Of fine-tuning, each evaluation's iteration and AP."""
    lines = (folder / "3_finetune" / "metrics.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["iteration"], row["bbbc038_val/segm/AP"]) for row in rows if "bbbc038_val/segm/AP" in row]


@pytest.mark.slow
def test_killed_at_twenty_moments(dataset_root: Path, slim: list[str], pipeline_file: Path, tmp_path: Path) -> None:
    train(pipeline_file, tmp_path / "whole", dataset_root, slim)
    kills = train(pipeline_file, tmp_path / "killed", dataset_root, slim, kills=22, seed=1)
    assert int(kills) == 22
    for log in logs(tmp_path / "killed"):
        check_equal(tmp_path / "whole_0", log.with_suffix(""))


@pytest.mark.slow
def test_workers_change_nothing_and_the_seed_everything(
    dataset_root: Path, slim: list[str], pipeline_file: Path, tmp_path: Path
) -> None:
    train(pipeline_file, tmp_path / "here", dataset_root, slim)
    train(pipeline_file, tmp_path / "workers", dataset_root, slim, **{"DATALOADER.NUM_WORKERS": 2})
    train(pipeline_file, tmp_path / "seed", dataset_root, slim, SEED=4)
    files = [tmp_path / f"{name}_0" / "2_amt2" / "model_final.pth" for name in ("here", "workers", "seed")]
    here, workers, seed = (torch.load(file, weights_only=True)["model"] for file in files)
    assert same(here, workers) == []
    # What is compared here and above would else be equal whatever was trained.
    assert len(same(here, seed)) > len(here) / 2
