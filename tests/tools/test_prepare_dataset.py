"""The tool: its four commands, its exit codes, and one line for what cannot be used."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from cupre_d2.commands.check import parse_args
from cupre_d2.data import register_cell_dataset, register_records
from cupre_d2.data.curation.export import write_coco_json, write_subset
from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import DatasetError
from tests.conftest import write_coco


def run(*arguments: str | Path, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "tools/prepare_dataset.py", *map(str, arguments)]
    environment = {"DETECTRON2_DATASETS": str(root), "PATH": "/usr/bin:/bin", "HOME": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture()
def dataset(tmp_path: Path) -> Path:
    write_coco(tmp_path / "images", tmp_path / "train.json", [f"{i}.png" for i in range(8)], {1: "cell"})
    return tmp_path / "train.json"


@pytest.mark.slow
def test_list_and_place(tmp_path: Path) -> None:
    root = tmp_path / "root"
    listed = run("list", root=root)
    assert listed.returncode == 0 and "bbbc038" in listed.stdout and "missing" in listed.stdout
    raw = tmp_path / "raw"
    raw.mkdir()
    with zipfile.ZipFile(raw / "stage1_train.zip", "w") as archive:
        archive.writestr("id/images/id.png", b"")
    placed = run("bbbc038", raw, root=root)
    assert placed.returncode == 0 and (root / "bbbc038/stage1_train/id/images/id.png").is_file()
    assert "bbbc038" in run("list", root=root).stdout
    wrong = run("bbbc08", raw, root=root)
    assert wrong.returncode == 2 and "bbbc038" in wrong.stderr


@pytest.mark.slow
def test_check_and_fix(dataset: Path, tmp_path: Path) -> None:
    # The discs drawn here may overlap, which is a warning.
    assert run("check", dataset, root=tmp_path).returncode < 2
    content = json.loads(dataset.read_text())
    content["annotations"][0]["image_id"] = 999
    dataset.write_text(json.dumps(content))
    checked = run("check", dataset, "--fix", tmp_path / "clean", root=tmp_path)
    assert checked.returncode == 2 and "unknown image id" in checked.stdout and str(dataset) in checked.stdout
    assert run("check", tmp_path / "clean/train.json", root=tmp_path).returncode < 2
    absent = run("check", tmp_path / "absent.json", root=tmp_path)
    assert absent.returncode == 2 and len(absent.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("all --fix out --images in", "--images and --fix"),
        ("all --images in", "--images"),
        ("livecell --results x", "--results"),
    ],
)
def test_options_that_check_does_not_take(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(arguments.split())
    target = arguments.split()[0]
    assert capsys.readouterr().err.endswith(f"error: check {target}: {said} given, which it does not take\n")
    assert parse_args(["all", "--results", "x"]).results == Path("x")


def test_subset_is_a_coco_file_of_its_own(dataset: Path, tmp_path: Path) -> None:
    register_cell_dataset("written_subset_base", images=tmp_path / "images", annotations=dataset)
    line = write_subset("written_subset_base_50pct_seed3", tmp_path / "out/subset.json")
    assert "4 images" in line and str(tmp_path / "images") in line
    register_cell_dataset("written_subset", images=tmp_path / "images", annotations=tmp_path / "out/subset.json")
    expected, found = get_records("written_subset_base_50pct_seed3"), get_records("written_subset")
    assert [record["file_name"] for record in found] == [record["file_name"] for record in expected]
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(one["annotations"], other["annotations"], strict=True):
            assert a["bbox"] == b["bbox"] and a["category_id"] == b["category_id"]
            assert str(a["segmentation"]) == str(b["segmentation"])


def test_what_coco_cannot_say(tmp_path: Path) -> None:
    record = {"file_name": str(tmp_path / "a.tif"), "height": 2, "width": 2}
    with pytest.raises(DatasetError, match="a.tif: record without annotations"):
        write_coco_json([record], ["cell"], tmp_path / "out.json")
    with pytest.raises(DatasetError, match="a.tif: page 1 of a stack"):
        write_coco_json([record | {"annotations": [], "page": 1}], ["cell"], tmp_path / "out.json")
    with pytest.raises(DatasetError, match=r"a.tif: channels \[2\] of a file"):
        write_coco_json([record | {"annotations": [], "channels": (2,)}], ["cell"], tmp_path / "out.json")
    with pytest.raises(DatasetError, match="a.tif: annotation 0, field segmentation: missing"):
        write_coco_json([record | {"annotations": [{"bbox": [0, 0, 1, 1]}]}], ["cell"], tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def record_of_a_mask(file: Path, **fields: Any) -> dict[str, Any]:
    mask = np.zeros((6, 8), np.uint8, order="F")
    mask[1:4, 2:7] = 1
    annotation = {"bbox": [2, 1, 7, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    annotations = [annotation | {"segmentation": mask_util.encode(mask)}]
    return {"file_name": str(file), "image_id": 1, "height": 6, "width": 8, "annotations": annotations, **fields}


def test_counts_as_bytes_and_corners(tmp_path: Path) -> None:
    write_coco_json([record_of_a_mask(tmp_path / "a.png")], ["cell"], tmp_path / "out.json")
    (annotation,) = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert annotation["bbox"] == [2, 1, 5, 3] and annotation["area"] == 15
    assert mask_util.area(annotation["segmentation"]) == 15
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    (tmp_path / "other").touch()
    assert (tmp_path / "out.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    record = record_of_a_mask(tmp_path / "a.png")
    record["annotations"][0]["iscrowd"] = {0}
    with pytest.raises(TypeError):
        write_coco_json([record], ["cell"], tmp_path / "out.json")
    assert not [*tmp_path.iterdir()]


def test_subset_keeps_cell_types_and_says_how_its_pixels_are_read(tmp_path: Path) -> None:
    fields = {"percentiles": None, "cell_type": "a172"}
    register_records("raw_subset", lambda: [record_of_a_mask(tmp_path / "a.png", **fields)])
    assert write_subset("raw_subset", tmp_path / "out.json").endswith("as the pixels of its images are taken as they are")
    assert json.loads((tmp_path / "out.json").read_text())["images"][0]["cell_type"] == "a172"
    register_records("stretched_subset", lambda: [record_of_a_mask(tmp_path / "a.png")])
    assert "normalize" not in write_subset("stretched_subset", tmp_path / "out.json")
