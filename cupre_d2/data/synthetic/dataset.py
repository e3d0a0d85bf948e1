"""Folders of procedural images, drawn on first use: PNG files and a COCO JSON that people can look at."""

import csv
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from pycocotools import mask as mask_util
from tqdm import tqdm

from cupre_d2.data.catalog import Record, register_records
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.synthetic.kinds import KINDS, SMALLEST_SIZE, kind_of, parameters_of, require
from cupre_d2.errors import DatasetError

# Raise it when a drawing changes, so that folders made before are drawn anew.
VERSION = 5


def register_synthetic() -> None:
    """Registers synthetic_{shapes,cells}_{train,val} and synthetic_cells_unlabeled (the training images).

    They are drawn into $CUPRE_SYNTHETIC_ROOT, or output/synthetic, when they are first used.
    Registering them again does nothing.
    """
    if "synthetic_shapes_train" in DatasetCatalog:
        return
    # Other seeds, other images: none of the validation images is a training image.
    for kind, seed in (("shapes", 100), ("cells", 200)):
        for split, count, offset in (("train", 240, 0), ("val", 24, 1)):
            name = f"synthetic_{kind}_{split}"
            register_records(name, partial(_load, kind, name, count, seed + offset), KINDS[kind].classes)
    register_records("synthetic_cells_unlabeled", _load_unlabeled)


def _load(kind: str, name: str, count: int, seed: int) -> list[Record]:
    root = Path(os.environ.get("CUPRE_SYNTHETIC_ROOT") or "output/synthetic").expanduser()
    make_dataset(kind, root / name, count, seed)
    return load_coco_json(root / name / "annotations.json", root / name / "images")[0]


def _load_unlabeled() -> list[Record]:
    records = DatasetCatalog.get("synthetic_cells_train")
    return [{field: value for field, value in record.items() if field != "annotations"} for record in records]


def make_dataset(kind: str, folder: Path, count: int, seed: int, size: int = 192, **parameters: Any) -> None:
    """Draws `folder/images/*.png`, `folder/annotations.json` (COCO, masks as RLE) and `folder/recipe.json`.

    Of the suspension kinds also `folder/counts.csv`, image,count.

    A folder made by the same recipe is kept, one made by another is replaced. The folder appears whole or not at all,
    so several processes may ask for it at once. Pixels, masks and counts are the same on any machine; how PNG packs
    them depends on the version of OpenCV.

    Args:
        kind: one of KINDS.
        folder: the folder to make.
        count: number of images, from 1.
        seed, size, parameters: as `draw` takes them.

    Raises:
        DatasetError: the kind or a parameter is unknown, a value cannot be, the folder exists but was not made here, or
            it cannot be written.
    """
    require(count=(count, 1), seed=(seed, 0), size=(size, SMALLEST_SIZE))
    chosen = asdict(parameters_of(kind, parameters))
    # As JSON gives it back, which knows no tuples.
    recipe = json.loads(
        json.dumps({"version": VERSION, "kind": kind, "count": count, "seed": seed, "size": size, "parameters": chosen})
    )
    if _recipe_of(folder) == recipe:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(temporary / "new", recipe)
            _put_in_place(temporary, folder, recipe)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DatasetError(f"{folder}: procedural images cannot be written there ({error.strerror})") from error


def _recipe_of(folder: Path) -> dict[str, Any] | None:
    """The recipe that a folder was made by; None if there is no folder."""
    if not folder.exists():
        return None
    try:
        return json.loads((folder / "recipe.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{folder}: no recipe.json that can be read, so it was not drawn by this program; expected no folder of "
            "that name, or CUPRE_SYNTHETIC_ROOT set to another place"
        ) from error


def _write(folder: Path, recipe: dict[str, Any]) -> None:
    kind, seed, size = recipe["kind"], recipe["seed"], recipe["size"]
    drawn = kind_of(kind)
    parameters = parameters_of(kind, recipe["parameters"])
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(recipe["count"]), desc=f"drawing {kind}", leave=False):
        picture, masks, categories = drawn.draw(seed, index, size, parameters)
        name = f"{kind}_{index:06d}.png"
        _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        (folder / "images" / name).write_bytes(png.tobytes())
        images.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        for mask, category in zip(masks, categories, strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **_annotation(mask, category + 1)})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(drawn.classes, start=1)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    if drawn.counted:
        (folder / "counts.csv").write_text(_count_table(images, annotations))
    (folder / "recipe.json").write_text(json.dumps(recipe))


def _count_table(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> str:
    counts = Counter(annotation["image_id"] for annotation in annotations)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("image", "count"))
    writer.writerows((image["file_name"], counts[image["id"]]) for image in images)
    return rows.getvalue()


def _annotation(mask: np.ndarray, category: int) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask).view(np.uint8))
    return {
        "category_id": category,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


def _put_in_place(temporary: Path, folder: Path, recipe: dict[str, Any]) -> None:
    """Moves an outdated folder out of the way and the new one in; another process may have been faster."""
    try:
        if _recipe_of(folder) not in (None, recipe):
            folder.rename(temporary / "old")
        (temporary / "new").rename(folder)
    except OSError:
        if _recipe_of(folder) != recipe:
            raise
