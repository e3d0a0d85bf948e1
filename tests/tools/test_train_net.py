"""The command users type, run as they type it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cupre_d2.data.builtin.bbbc import bbbc038_ids


def train_net(*arguments: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("DETECTRON2_DATASETS", None)
    if root:
        environment["DETECTRON2_DATASETS"] = str(root)
    command = [sys.executable, "tools/train_net.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def error_line(run: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused run ends with."""
    assert run.returncode == 2, run.stdout + run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("train_net.py: ")]
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stderr
    return lines[0]


def test_three_stages_then_evaluation_only(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    config = ["--config-file", "configs/mini/cupre_bbbc038_5pct.yaml"]
    opts = [*slim, "OUTPUT_DIR", str(tmp_path)]
    first = train_net(*config, *opts, root=dataset_root)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "pipeline:" in first.stdout
    stages = ["1_coco_pretrain", "2_amt2", "3_finetune"]
    assert all((tmp_path / stage / "model_final.pth").is_file() for stage in stages)
    results = json.loads((tmp_path / "results.json").read_text())

    own = sorted(path for path in (tmp_path / stages[2]).rglob("*") if path.is_file())
    before = [path.stat().st_mtime_ns for path in own]
    # Training images are not needed.
    test_alone = tmp_path / "datasets"
    (test_alone / "bbbc038").mkdir(parents=True)
    (test_alone / "bbbc038/stage1_train").symlink_to(dataset_root / "bbbc038/stage1_train")
    again = train_net(*config, "--eval-only", *opts, root=test_alone)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"] == results["metrics"]
    assert list((tmp_path / "evaluation/inference").rglob("instances_results.json"))
    assert [path.stat().st_mtime_ns for path in own] == before
    nothing = train_net(*config, "--eval-only", *opts, "DATASETS.TEST", "()", root=test_alone)
    assert "stage finetune: DATASETS.TEST (): expected a data set" in error_line(nothing)

    other = train_net(*config, *opts, "SOLVER.WEIGHT_DECAY", "0.25", root=dataset_root)
    assert "was made with another config (SOLVER.WEIGHT_DECAY" in error_line(other)


def test_missing_data_folder(tmp_path: Path) -> None:
    line = error_line(train_net("--config-file", "configs/mini/scratch_bbbc038_5pct.yaml", root=tmp_path))
    assert "DETECTRON2_DATASETS" in line
    assert "stage1_train" in line
    assert "datasets/README.md" in line


@pytest.mark.parametrize("workers", ["0", "1"])
def test_image_that_breaks_off(dataset_root: Path, slim: list[str], tmp_path: Path, workers: str) -> None:
    root = tmp_path / "datasets"
    shutil.copytree(dataset_root / "bbbc038", root / "bbbc038")
    # The first of each split stays whole, as it is decoded before training.
    whole = {bbbc038_ids(root, role)[0] for role in ("train", "val")}
    for image in root.glob("bbbc038/stage1_train/*/images/*.png"):
        if image.stem not in whole:
            image.write_bytes(image.read_bytes()[:-200])
    config = ["--config-file", "configs/mini/scratch_bbbc038_5pct.yaml"]
    opts = [*slim, "OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", workers]
    opts += ["DATASETS.TRAIN", "('bbbc038_train',)"]
    run = train_net(*config, *opts, root=root)
    assert re.fullmatch(r"train_net.py: \S+/images/\w+\.png: .*(truncated|read).*", error_line(run))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config-file", "configs/cuper_livecell_5pct.yaml"], "did you mean cupre_livecell_5pct.yaml"),
        (["--config-file", "configs/quickstart.yaml", "SOLVER.LEARNING_RATE", "1"], "SOLVER.LEARNING_RATE"),
        (["--config-file", "configs/quickstart.yaml", "--stage", "amt"], "did you mean amt2"),
        (["--config-file", "configs/quickstart.yaml", "--eval-only", "OUTPUT_DIR", "nowhere"], "train first"),
    ],
)
def test_one_line_for_bad_input(arguments: list[str], expected: str) -> None:
    assert expected in error_line(train_net(*arguments))


def test_help_names_every_flag() -> None:
    run = train_net("--help")
    assert run.returncode == 0
    flags = ("--config-file", "--eval-only", "--restart", "--stage", "--num-gpus", "--num-machines", "--dist-url")
    assert all(flag in run.stdout for flag in flags)


def test_first_image_broken_ends_before_training(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    shutil.copytree(dataset_root / "bbbc038", root / "bbbc038")
    for image in root.glob("bbbc038/stage1_train/*/images/*.png"):
        image.write_bytes(image.read_bytes()[:-200])
    run = train_net(
        "--config-file", "configs/mini/scratch_bbbc038_5pct.yaml", *slim, "OUTPUT_DIR", str(tmp_path / "out"), root=root
    )
    assert "train_net.py: dataset 'bbbc038_train_5pct': " in error_line(run)
    assert not (tmp_path / "out").exists()


def test_broken_weights_end_before_training(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"<html>not found</html>")
    opts = [*slim, "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", str(weights)]
    run = train_net("--config-file", "configs/mini/scratch_bbbc038_5pct.yaml", *opts, root=dataset_root)
    assert str(weights) in error_line(run)
    assert not (tmp_path / "out").exists()


def test_number_of_processes_below_one() -> None:
    run = train_net("--config-file", "configs/quickstart.yaml", "--num-gpus", "0")
    assert run.returncode == 2 and "--num-gpus 0" in run.stderr and "Traceback" not in run.stderr


def test_two_processes_in_one_folder(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    """The second is refused, not mixed with the first; when the first has ended, by whatever, the next goes on."""
    opts = [*slim, "OUTPUT_DIR", str(tmp_path / "out")]
    config = "configs/mini/scratch_bbbc038_5pct.yaml"
    held = f"from cupre_d2 import files; files.hold({str(tmp_path / 'out')!r}, ''); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        refused = train_net("--config-file", config, *opts, root=dataset_root)
        other.kill()
    assert "another process is training there" in error_line(refused)
    assert not list(tmp_path.rglob("model_*.pth"))
    assert train_net("--config-file", config, *opts, root=dataset_root).returncode == 0
