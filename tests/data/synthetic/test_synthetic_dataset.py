import csv
import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data import synthetic
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.csv_tables import load_count_table
from cupre_d2.errors import DatasetError


def test_make_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "shapes"
    synthetic.make_dataset("shapes", folder, 4, 9, 96)
    records, categories = load_coco_json(folder / "annotations.json", folder / "images")
    assert list(categories.values()) == list(synthetic.SHAPES)
    assert len(records) == 4
    areas = [entry["area"] for entry in json.loads((folder / "annotations.json").read_text())["annotations"]]
    for index, record in enumerate(records):
        image, masks, classes = synthetic.draw_shapes(9, index, 96)
        np.testing.assert_array_equal(np.asarray(Image.open(record["file_name"])), image)
        assert [annotation["category_id"] for annotation in record["annotations"]] == list(classes)
        for annotation, mask in zip(record["annotations"], masks, strict=True):
            np.testing.assert_array_equal(mask_util.decode(annotation["segmentation"]).astype(bool), mask)
            x, y, width, height = annotation["bbox"]
            rows, columns = np.nonzero(mask)
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert areas.pop(0) == mask.sum()
    assert [entry.name for entry in folder.parent.iterdir()] == ["shapes"]


def test_folder_is_kept_until_the_recipe_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cells"
    synthetic.make_dataset("cells", folder, 2, 0, 64)
    mark = folder / "mark"
    for change in ({"seed": 1}, {"count": 3}, {"size": 72}, {"version": 99}, {"overlap": 0.1}, {"gain": (90.0, 90.0)}):
        mark.touch()
        synthetic.make_dataset("cells", folder, 2, 0, 64)
        assert mark.exists()
        recipe = {"kind": "cells", "count": 2, "seed": 0, "size": 64, **change}
        with monkeypatch.context() as patched:
            patched.setattr(synthetic.dataset, "VERSION", recipe.pop("version", synthetic.VERSION))
            synthetic.make_dataset(folder=folder, **recipe)
        assert not mark.exists()
        synthetic.make_dataset("cells", folder, 2, 0, 64)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(DatasetError, match="recipe.json.*CUPRE_SYNTHETIC_ROOT"):
        synthetic.make_dataset("cells", tmp_path, 1, 0, 64)
    assert (tmp_path / "precious.txt").exists()


def test_nothing_is_left_when_drawing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("interrupted")

    monkeypatch.setitem(synthetic.KINDS, "cells", synthetic.KINDS["cells"]._replace(draw=fail))
    with pytest.raises(RuntimeError, match="interrupted"):
        synthetic.make_dataset("cells", tmp_path / "cells", 1, 0, 64)
    assert not list(tmp_path.iterdir())


def test_several_at_once(tmp_path: Path) -> None:
    """Three make it from nothing, then three replace an outdated one."""
    folder = tmp_path / "cells"
    for seed in (0, 1):
        errors: list[BaseException] = []

        def make(seed: int = seed, errors: list[BaseException] = errors) -> None:
            try:
                synthetic.make_dataset("cells", folder, 3, seed, 64)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=make) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert json.loads((folder / "recipe.json").read_text())["seed"] == seed
        assert len(load_coco_json(folder / "annotations.json", folder / "images")[0]) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells"]


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot be written"):
        synthetic.make_dataset("cells", tmp_path / "file" / "cells", 1, 0, 64)


def test_counts_are_written(tmp_path: Path) -> None:
    synthetic.make_dataset("bright_field", tmp_path / "made", 4, 9, 128)
    records = load_count_table(tmp_path / "made/images", tmp_path / "made/counts.csv")
    expected = [len(synthetic.draw_bright_field(9, index, 128)[1]) for index in range(4)]
    assert [record["count"] for record in records] == expected
    with (tmp_path / "made/counts.csv").open(newline="") as stream:
        assert next(csv.reader(stream)) == ["image", "count"]


def test_parameters_are_drawn_with_and_written_down(tmp_path: Path) -> None:
    synthetic.make_dataset("phase_contrast", tmp_path / "made", 1, 9, 128, radius=(4, 5), noise=(0.0, 0.0))
    image, masks, _ = synthetic.draw("phase_contrast", 9, 0, 128, radius=(4, 5), noise=(0.0, 0.0))
    (file,) = (tmp_path / "made/images").iterdir()
    np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    recipe = json.loads((tmp_path / "made/recipe.json").read_text())
    assert recipe["parameters"]["radius"] == [4, 5] and recipe["parameters"]["overlap"] == 1


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"size": 8}, {"flavour": 3}])
def test_nothing_is_made_of_wrong_arguments(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(DatasetError, match=next(iter(wrong))):
        synthetic.make_dataset(**{"kind": "cells", "folder": tmp_path / "made", "count": 1, "seed": 0, "size": 64, **wrong})
    assert not list(tmp_path.iterdir())


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'plants'.*cells, bright_field, phase_contrast, shapes"):
        synthetic.make_dataset("plants", tmp_path, 1, 0, 64)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    synthetic.register_synthetic()
    synthetic.register_synthetic()
    root = tmp_path_factory.mktemp("synthetic")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CUPRE_SYNTHETIC_ROOT", str(root))
        names = [f"synthetic_{which}" for which in ("shapes_train", "shapes_val", "cells_train", "cells_val")]
        return {name: DatasetCatalog.get(name) for name in [*names, "synthetic_cells_unlabeled"]}


def test_registered_names(drawn: dict[str, list]) -> None:
    assert [len(records) for records in drawn.values()] == [240, 24, 240, 24, 240]
    for name, records in drawn.items():
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "cell_coco"
        assert tuple(metadata.thing_classes) == (synthetic.SHAPES if "shapes" in name else ("cell",))
        assert len({record["image_id"] for record in records}) == len(records)
        assert all(Path(record["file_name"]).is_absolute() for record in records)
        assert all(("annotations" in record) == ("unlabeled" not in name) for record in records)


def test_train_and_val_share_no_image(drawn: dict[str, list]) -> None:
    for kind in ("shapes", "cells"):
        train, val = (
            {
                hashlib.sha256(Path(record["file_name"]).read_bytes()).digest()
                for record in drawn[f"synthetic_{kind}_{split}"]
            }
            for split in ("train", "val")
        )
        assert len(train) == 240 and len(val) == 24 and not train & val


def test_unlabeled_are_the_training_images(drawn: dict[str, list]) -> None:
    files = [[r["file_name"] for r in drawn[f"synthetic_cells_{split}"]] for split in ("unlabeled", "train")]
    assert files[0] == files[1]


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUPRE_SYNTHETIC_ROOT", "")
    synthetic.register_synthetic()
    DatasetCatalog.get("synthetic_cells_val")
    assert (tmp_path / "output/synthetic/synthetic_cells_val/annotations.json").is_file()
