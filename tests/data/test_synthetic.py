import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util
from scipy import ndimage

from cupre_d2.data import synthetic
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.errors import DatasetError

DRAWERS = [synthetic.draw_microscope, synthetic.draw_shapes]
cells = [synthetic.draw_microscope(7, index) for index in range(20)]
shapes = [synthetic.draw_shapes(7, index) for index in range(40)]


def digest(drawings: list) -> str:
    parts = hashlib.sha256()
    for image, masks, classes in drawings:
        parts.update(image.tobytes() + np.packbits(np.array(masks)).tobytes() + bytes(classes))
    return parts.hexdigest()


@pytest.mark.parametrize("draw", DRAWERS)
def test_same_seed_same_bytes(draw: Callable) -> None:
    assert digest([draw(5, 3)]) == digest([draw(5, 3)])
    assert len({draw(*key)[0].tobytes() for key in [(5, 3), (5, 4), (4, 3), (3, 5), (0, 0)]}) == 5


def test_same_bytes_in_another_process() -> None:
    program = (
        "import numpy as np, hashlib\n"
        "from cupre_d2.data import synthetic\n"
        "for draw in (synthetic.draw_microscope, synthetic.draw_shapes):\n"
        "    print(hashlib.sha256(b''.join(draw(7, i)[0].tobytes() for i in range(3))).hexdigest())\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    here = [hashlib.sha256(b"".join(d[0].tobytes() for d in drawn[:3])).hexdigest() for drawn in (cells, shapes)]
    assert output == here


@pytest.mark.parametrize(
    "draw, size", [(synthetic.draw_microscope, 64), (synthetic.draw_shapes, 64), *((d, 192) for d in DRAWERS)]
)
def test_shapes_and_types(draw: Callable, size: int) -> None:
    image, masks, classes = draw(0, 0, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert len(masks) == len(classes) >= 1
    for mask in masks:
        assert mask.shape == (size, size) and mask.dtype == bool


def test_numbers_and_sizes_of_cells() -> None:
    counts = [len(masks) for _, masks, _ in cells]
    assert min(counts) >= 5 and max(counts) <= 25 and len(set(counts)) > 5
    whole = [mask for _, masks, _ in cells for mask in masks if not touches_border(mask)]
    diameters = [2 * np.sqrt(mask.sum() / np.pi) for mask in whole]
    assert min(diameters) > 9 and max(diameters) < 31
    assert np.ptp(diameters) > 10
    assert {kind for *_, classes in cells for kind in classes} == {0}


def touches_border(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def test_every_mask_is_one_piece_of_some_size() -> None:
    for _, masks, _ in cells:
        for mask in masks:
            assert mask.sum() >= 40 and ndimage.label(mask)[1] == 1
    assert min(mask.sum() for _, masks, _ in shapes for mask in masks) >= 40


def test_cells_touch_and_overlap_but_none_is_hidden() -> None:
    overlapping = touching = pairs = 0
    for _, masks, _ in cells:
        for index, mask in enumerate(masks):
            for other in masks[:index]:
                shared = (mask & other).sum()
                pairs += 1
                overlapping += shared > 0
                touching += shared == 0 and bool((ndimage.binary_dilation(mask) & other).any())
                assert shared <= 0.25 * min(mask.sum(), other.sum())
    assert overlapping > 40 and touching > 5 and overlapping + touching < 0.5 * pairs


def test_cells_are_bright_on_a_dark_grey_image() -> None:
    for image, masks, _ in cells:
        assert (image[:, :, 0] == image[:, :, 2]).all()
        covered = np.any(masks, axis=0)
        away = ~ndimage.binary_dilation(covered, iterations=5)
        assert image[away].mean() < 60
        for mask in masks:
            assert image[mask].mean() > 1.5 * image[away].mean()


def test_light_adds_up_where_cells_overlap() -> None:
    ratios = []
    for image, masks, _ in cells:
        depth = np.sum(masks, axis=0)
        if (depth > 1).sum() > 20:
            ratios.append(image[depth > 1].mean() / image[depth == 1].mean())
    assert len(ratios) > 10 and np.mean(ratios) > 1.1


def test_the_noise_is_shot_noise() -> None:
    """What a 3x3 median takes away is larger where it is bright."""
    noise = [np.abs(image[:, :, 0] - ndimage.median_filter(image[:, :, 0].astype(float), 3)) for image, *_ in cells]
    inside = [
        n[ndimage.binary_erosion(np.any(m, axis=0), iterations=3)].mean() for n, (_, m, _) in zip(noise, cells, strict=True)
    ]
    outside = [n[~np.any(m, axis=0)].mean() for n, (_, m, _) in zip(noise, cells, strict=True)]
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_numbers_and_classes_of_shapes() -> None:
    assert all(1 <= len(masks) <= 8 for _, masks, _ in shapes)
    assert {kind for *_, classes in shapes for kind in classes} == set(range(len(synthetic.SHAPES)))


def test_masks_of_shapes_are_what_is_visible() -> None:
    for _, masks, _ in shapes:
        assert np.sum(masks, axis=0).max() == 1


def test_shapes_occlude_each_other() -> None:
    """Neighbours whose masks meet along more than a point or two."""
    meeting = 0
    for _, masks, _ in shapes:
        for index, mask in enumerate(masks):
            meeting += sum((ndimage.binary_dilation(mask) & other).sum() > 8 for other in masks[:index])
    assert meeting > 20


def test_shapes_look_like_their_class() -> None:
    """Holes only in rings; whole discs as full as a disc, whole stars far from it."""
    filled: dict[str, list[float]] = {name: [] for name in synthetic.SHAPES}
    holes = {name: 0 for name in synthetic.SHAPES}
    for index in range(200):
        _, masks, classes = synthetic.draw_shapes(11, index, 96)
        visible = np.any(masks, axis=0)
        for mask, kind in zip(masks, classes, strict=True):
            if touches_border(mask) or (ndimage.binary_dilation(mask) & visible & ~mask).any():
                continue
            name = synthetic.SHAPES[kind]
            holes[name] += bool((ndimage.binary_fill_holes(mask) ^ mask).sum() > 5)
            rows, columns = np.nonzero(mask)
            reach = np.hypot(rows - rows.mean(), columns - columns.mean()).max()
            filled[name].append(mask.sum() / (np.pi * reach**2))
    assert all(len(values) > 3 for values in filled.values())
    assert holes.pop("ring") == len(filled["ring"]) and not any(holes.values())
    assert np.mean(filled["disc"]) > 0.9
    assert np.mean(filled["star"]) < 0.5 and np.mean(filled["triangle"]) < 0.6


# ---- data sets


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
    for change in ({"seed": 1}, {"count": 3}, {"size": 72}, {"version": 99}):
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

    monkeypatch.setitem(synthetic.DRAW, "cells", (fail, ("cell",)))
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
