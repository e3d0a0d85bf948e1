"""docs/detectron2.md, block by block, on small images of 16 bits; and the word where Detectron2 reads such images itself."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, detection_utils
from PIL import Image

from cupre_d2 import config
from cupre_d2.data.mappers import warn_of_deep_images
from cupre_d2.engine import TRAINER_REGISTRY
from tests.conftest import SLIM, write_coco

# As importing cupre_d2 leaves it, before a test has met a deep image.
READER = detection_utils.read_image
PAGE = re.findall(r"```(python|yaml)\n(.*?)```", Path("docs/detectron2.md").read_text(), re.S)


def to_16_bits(path: Path) -> None:
    Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)


@pytest.fixture()
def beside_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with everything that the page names; what the page registers is gone afterwards."""
    root = Path.cwd()
    write_coco(tmp_path / "cells/images", tmp_path / "cells/train.json", [f"{i}.png" for i in range(4)], {1: "cell"})
    write_coco(tmp_path / "cells/images", tmp_path / "cells/val.json", ["v.png"], {1: "cell"}, first_id=50)
    for path in (tmp_path / "cells/images").iterdir():
        to_16_bits(path)
    shutil.copy(tmp_path / "cells/images/v.png", tmp_path / "cells/images/new.png")
    Image.open(tmp_path / "cells/images/new.png").save(tmp_path / "cells/images/new.tif")
    safetensors.torch.save_file(timm.create_model("resnest14d").state_dict(), tmp_path / "resnest14d.safetensors")
    (tmp_path / "configs").symlink_to(root / "configs")
    (tmp_path / "keeping.yaml").write_text(next(block for language, block in PAGE if language == "yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_registered", [])
    yield tmp_path
    for name in ("my_cells_train", "my_cells_val"):
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    TRAINER_REGISTRY._obj_map.pop("KeepingTrainer", None)


def in_small(block: str) -> str:
    """The block with a network and a number of iterations that take a second."""
    return block.replace("300", "2").replace('train("keeping.yaml", {', 'train("keeping.yaml", SLIM | {')


@pytest.mark.slow
def test_the_page(beside_the_cells: Path, slim: list[str], caplog: pytest.LogCaptureFixture) -> None:
    first, *others = [block for language, block in PAGE if language == "python"]
    scope: dict = {"SLIM": SLIM}
    exec(first, scope)
    scope["cfg"].merge_from_list(slim)
    found = []
    for block in others:
        exec(in_small(block), scope)
        found.append(scope.pop("metrics", None))
    by_default_trainer, by_own_trainer = [metrics for metrics in found if metrics]

    assert isinstance(scope["trainer"].optimizer, torch.optim.AdamW)
    assert "AP" in by_default_trainer["segm"] and "AP" in by_own_trainer["my_cells_val"]["segm"]
    # The picture of a predictor is the one of training, and no black one.
    seen = scope["DetectionMapper"](scope["cfg"], False)(DatasetCatalog.get("my_cells_val")[0])["image"].numpy()
    assert scope["image"].max() == 255 and seen.max() == 255
    assert len(scope["instances"].pred_masks) == len(scope["instances"])
    backbone = [key for key in scope["model"].state_dict() if key.startswith("backbone.bottom_up.")]
    assert set(backbone) <= {*scope["report"].matched, *scope["report"].left_out}
    kept = beside_the_cells / "output/keeping/1_keeping"
    assert (kept / "after_1.pth").is_file() and (kept / "model_final.pth").is_file()
    assert "more than 8 bits" not in caplog.text


@pytest.mark.parametrize(
    ("name", "pixels", "deep"),
    [
        ("grey16.png", np.full((8, 8), 4000, np.uint16), True),
        ("colour16.png", np.full((8, 8, 3), 4000, np.uint16), True),
        ("float.tif", np.full((8, 8), 0.5, np.float32), True),
        ("grey8.png", np.full((8, 8), 9, np.uint8), False),
        ("colour8.jpg", np.full((16, 16, 3), 9, np.uint8), False),
    ],
)
def test_detectron2s_reader_says_once_what_it_cannot_show(
    name: str,
    pixels: np.ndarray,
    deep: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = str(tmp_path / name)
    cv2.imwrite(file, pixels)
    monkeypatch.setattr(detection_utils, "read_image", READER.__wrapped__)
    warn_of_deep_images()
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    for _ in range(2):
        read = mapper({"file_name": file, "image_id": 1})["image"]
    assert np.array_equal(read.numpy().transpose(1, 2, 0), READER.__wrapped__(file, "RGB"))
    said = [record.getMessage() for record in caplog.records if "more than 8 bits" in record.getMessage()]
    assert len(said) == deep
    assert not said or (name in said[0] and "DetectionMapper" in said[0])
