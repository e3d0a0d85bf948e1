"""A stranger's session on images of his own: a wheel in a fresh environment, outside of any checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import write_coco

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with this package's wheel; what it needs is that of the environment that tests."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "cupre_d2", "configs", "*.py", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for file in files:
        if (ROOT / file).is_file() and not file.startswith("tests/"):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, source / file)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run([*pip, *wheel], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    # Named in a .pth, packages can be imported, but what was installed editable, this checkout, cannot.
    Path(site.stdout.strip(), "needs.pth").write_text(sysconfig.get_path("purelib"))
    (file,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(file)], check=True)
    return python.parent


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for split, first in (("train", 1), ("val", 20), ("more", 40)):
        write_coco(folder / split, folder / f"{split}.json", [f"{split}{i}.png" for i in range(4)], {1: "cell"}, first)
    (folder / "my_cells.yaml").write_text(
        "my_train: {for: train, images: train, annotations: train.json}\n"
        "my_val: {for: val, images: val, annotations: val.json}\n"
        "my_more: {for: unlabeled, images: more}\n"
    )
    return folder


def run(lab: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DETECTRON2_DATASETS")}
    threads = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([str(part) for part in command], cwd=lab, env=clean | threads, capture_output=True, text=True)


@pytest.mark.slow
def test_three_commands(environment: Path, lab: Path, slim: list[str]) -> None:
    cupre = environment / "cupre-d2"
    checked = run(lab, cupre, "check", "my_cells.yaml")
    # The discs drawn here may overlap, which is a warning.
    assert checked.returncode < 2, checked.stdout + checked.stderr

    train = ["train", "--config-file", "configs/mini/cells_moco.yaml", "--datasets", "my_cells.yaml", *slim]
    trained = run(lab, cupre, *train)
    assert trained.returncode == 0, trained.stderr[-3000:]
    output = lab / "output/mini/cells_moco_my_cells"
    results = json.loads((output / "results.json").read_text())
    assert list(results["metrics"]) == ["my_val"]
    assert results["config"]["DATASETS"]["TRAIN"] == ["my_train"]
    assert (output / "report.html").is_file()

    torchrun = [environment / "python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", cupre]
    shared = run(lab, *torchrun, *train, "OUTPUT_DIR", "two")
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert list(json.loads((lab / "two/results.json").read_text())["metrics"]) == ["my_val"]
    assert (lab / "two/report.html").is_file()


@pytest.mark.slow
def test_who_has_no_coco_is_told_what_needs_none(environment: Path, lab: Path) -> None:
    ended = run(
        lab, environment / "cupre-d2", "train", "--config-file", "configs/mini/cupre.yaml", "--datasets", "my_cells.yaml"
    )
    assert ended.returncode == 2
    line = ended.stderr.strip().splitlines()[-1]
    assert "coco_2017_train" in line
    assert "pipelines without stage coco_pretrain: cells_moco.yaml" in line and "scratch.yaml" in line
