"""What the README tells people to type works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
from detectron2.modeling import build_backbone
from PIL import Image

from cupre_d2.data import get_records
from cupre_d2.engine import pipeline
from tests.conftest import draw_discs, write_coco

README = Path("README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def train_net_commands() -> list[list[str]]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python tools/train_net.py")]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", train_net_commands(), ids=lambda arguments: arguments[1])
def test_commands(arguments: list[str], small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    flag, config, *rest = arguments
    assert flag == "--config-file"
    opts = rest[2:] if rest[:1] == ["--num-gpus"] else rest
    pipeline.run(pipeline.prepare(config, [*opts, *slim, "OUTPUT_DIR", str(tmp_path)]))
    assert (tmp_path / "results.json").is_file()


def test_own_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slim: list[str], small_datasets: Path) -> None:
    root = Path.cwd()
    write_coco(tmp_path / "cells/images", tmp_path / "cells/train.json", [f"{i}.png" for i in range(4)], {1: "cell"})
    write_coco(tmp_path / "cells/images", tmp_path / "cells/val.json", ["v.png"], {1: "cell"}, first_id=50)
    for folder, name in (("plate/images", "a.png"), ("plate/labels", "a.png"), ("plate/more_images", "b.png")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        image, _ = draw_discs(7)
        Image.fromarray((image > 100).astype("uint8") if folder.endswith("labels") else image).save(tmp_path / folder / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(root / "configs")
    register, training = [block for block in blocks("python") if "my_cells" in block]
    exec(register, {})
    assert len(get_records("my_cells_train")[0]["annotations"]) == 6
    assert len(get_records("my_plate_train")[0]["annotations"]) == 1
    assert "annotations" not in get_records("my_unlabeled")[0]
    small = dict(zip(slim[0::2], slim[1::2], strict=True))
    scope: dict = {"small": small}
    exec(training.replace("overrides)", "small | overrides)"), scope)
    assert "segm" in scope["metrics"]["my_cells_val"]


def test_use_from_detectron2() -> None:
    (block,) = [block for block in blocks("python") if "get_cfg" in block]
    scope: dict = {}
    exec(block, scope)
    scope["cfg"].MODEL.DEVICE = "cpu"
    assert build_backbone(scope["cfg"]).size_divisibility == 32
