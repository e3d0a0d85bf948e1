"""A project stands on the engine without a file of it touched: tests/project, which counts BBBC005's nuclei."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cupre_d2.data.catalog import datasets_root

SCRIPT = Path(__file__).parent / "project/count_nuclei.py"
CONFIG = SCRIPT.parent / "configs/mini/counting.yaml"
TRAINED, EVALUATED = 16, 8


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of data sets: some of BBBC005's images, with counts from their names."""
    images = sorted((datasets_root() / "bbbc005/BBBC005_v1_images").glob("*.TIF"))
    if len(images) < TRAINED + EVALUATED:
        pytest.skip("BBBC005 is not below $DETECTRON2_DATASETS")
    folder = tmp_path_factory.mktemp("nuclei")
    for name, some in (("train", images[:TRAINED]), ("val", images[TRAINED : TRAINED + EVALUATED])):
        (folder / name).mkdir()
        rows = ["image,count"]
        for file in some:
            shutil.copy(file, folder / name)
            rows.append(f"{file.name},{int(file.name.split('_C')[1].split('_')[0])}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (folder / "nuclei.yaml").write_text(
        "nuclei_train: {for: train, images: train, counts: train.csv}\n"
        "nuclei_val: {for: val, images: val, counts: val.csv}\n"
    )
    return folder / "nuclei.yaml"


def start(nuclei: Path, *words: str | Path) -> subprocess.Popen[str]:
    named = [word for word in words if word == "reproduce"]
    options = [*named, "--datasets", nuclei, *words[len(named) :]]
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-4000:]
    return printed


@pytest.mark.slow
@pytest.mark.real_data
def test_killed_and_resumed_exactly(nuclei: Path, tmp_path: Path) -> None:
    """Its metric, the best by the lowest, and its section of the report too."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = finish(start(nuclei, "--config-file", CONFIG, "OUTPUT_DIR", whole))
    (mae,) = json.loads((whole / "results.json").read_text())["metrics"]["nuclei_val"]["count"].values()
    assert f"{mae:.4g}" in printed and "MAE (nuclei)" in printed
    assert "Nuclei off by, on average" in (whole / "report.html").read_text()

    process = start(nuclei, "--config-file", CONFIG, "OUTPUT_DIR", killed)
    while not (killed / "1_count/model_0000009.pth").exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "results.json").exists()
    finish(start(nuclei, "--config-file", CONFIG, "OUTPUT_DIR", killed))
    for name in ("model_final.pth", "model_best.pth"):
        one, other = (torch.load(folder / "1_count" / name, weights_only=True) for folder in (whole, killed))
        assert one["iteration"] == other["iteration"]
        assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
    evaluated = [json.loads(line) for line in (whole / "1_count/metrics.json").read_text().splitlines()]
    errors = {row["iteration"]: row["nuclei_val/count/MAE"] for row in evaluated if "nuclei_val/count/MAE" in row}
    errors[29] = mae
    assert one["iteration"] == min(errors, key=errors.__getitem__)


@pytest.mark.slow
@pytest.mark.real_data
def test_its_table(nuclei: Path, tmp_path: Path) -> None:
    results = tmp_path / "results" / "counting"
    results.parent.mkdir()
    words = ["reproduce", "--table", "counting", "--jobs", "2", "--output", tmp_path / "out", "--results", results]
    process = start(nuclei, *words)
    finish(process)
    rows = list(csv.DictReader(results.with_suffix(".csv").open()))
    assert {(row["width"], row["seed"]) for row in rows} == {(w, s) for w in "24" for s in "01"}
    assert {(row["dataset"], row["task"], row["metric"]) for row in rows} == {("nuclei_val", "count", "MAE")}
    page = results.with_suffix(".md").read_text()
    assert "counting nuclei" in page and "±" in page
    assert results.with_suffix(".png").is_file() and Path(f"{results}_report.html").is_file()
