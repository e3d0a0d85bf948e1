"""The command users type, run as they type it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch


def convert(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/convert_weights.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def resnest50(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the published shapes; zeros, as values do not matter."""
    with torch.device("meta"):
        weights = timm.create_model("resnest50d").state_dict()
    path = tmp_path_factory.mktemp("published") / "resnest50.pth"
    torch.save({key: torch.zeros(value.shape) for key, value in weights.items()}, path)
    return str(path)


def test_table_and_file(resnest50: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out.pth")
    run = convert(resnest50, out, "--config-file", "configs/Base-ResNeSt50-Cascade.yaml")
    assert run.returncode == 0, run.stderr
    assert "ResNeSt of resnest or timm: backbone ResNeSt, DEPTH 50, RADIX 2" in run.stdout
    assert "backbone of configs/Base-ResNeSt50-Cascade.yaml" in run.stdout
    assert "backbone.bottom_up.stem.conv1_1.weight" in run.stdout
    for row in ("matched", "missing in the file", "unexpected in the file", "shape mismatched", "left out"):
        assert any(line.startswith(f"{row} ") for line in run.stdout.splitlines()), row
    assert run.stdout.splitlines()[-1] == f"written: {out}"
    assert "backbone.bottom_up.res5.2.conv3.weight" in torch.load(out, weights_only=True)["model"]
    assert "backbone.bottom_up.res5.2.conv3.weight" not in run.stdout


def test_all_names(resnest50: str, tmp_path: Path) -> None:
    run = convert(resnest50, str(tmp_path / "out.pth"), "--all")
    assert run.returncode == 0, run.stderr
    assert "backbone.bottom_up.res5.2.conv3.weight" in run.stdout and " more\n" not in run.stdout


def test_one_line_for_weights_of_another_config(resnest50: str, tmp_path: Path) -> None:
    run = convert(resnest50, str(tmp_path / "out.pth"), "--config-file", "configs/Base-ResNeSt200-Cascade.yaml")
    assert run.returncode == 2
    line = run.stderr.splitlines()[-1]
    assert line.startswith("convert_weights.py: ") and "Traceback" not in run.stderr
    assert "MODEL.RESNETS.DEPTH: 50 in the file, 200 in the model" in line
    assert "the file goes with configs/Base-ResNeSt50-Cascade.yaml" in line
    assert not list(tmp_path.iterdir())
