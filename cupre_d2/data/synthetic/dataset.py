"""What can be drawn, by name; and folders of it, drawn on first use: PNG files and a COCO JSON that people can look at."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from pycocotools import mask as mask_util
from tqdm import tqdm

from cupre_d2.data.catalog import Record, register_records
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.synthetic.fluorescence import Drawing, Fluorescence, draw_microscope
from cupre_d2.data.synthetic.shapes import SHAPES, Scene, draw_shapes
from cupre_d2.data.synthetic.suspension import BRIGHT_FIELD, PHASE_CONTRAST, draw_bright_field, draw_phase_contrast
from cupre_d2.errors import DatasetError

# Raise it when a drawing changes, so that folders made before are drawn anew.
VERSION = 5
# Smallest side of an image, pixels.
_SMALLEST_SIZE = 64
# Of any parameter; nothing here needs more.
_LARGEST = 1_000_000


class Kind(NamedTuple):
    """A kind of images.

    Attributes:
        draw: takes seed, index, size and parameters.
        classes: names of its categories.
        defaults: its parameters, a frozen dataclass.
        counted: whether it is one of the counting papers', whose data sets have a table of counts.
    """

    draw: Callable[[int, int, int, Any], Drawing]
    classes: tuple[str, ...]
    defaults: Any
    counted: bool = False


KINDS = {
    "cells": Kind(draw_microscope, ("cell",), Fluorescence()),
    "bright_field": Kind(draw_bright_field, ("cell",), BRIGHT_FIELD, counted=True),
    "phase_contrast": Kind(draw_phase_contrast, ("cell",), PHASE_CONTRAST, counted=True),
    "shapes": Kind(draw_shapes, SHAPES, Scene()),
}


def draw(kind: str, seed: int, index: int, size: int, **parameters: Any) -> Drawing:
    """Draws one image; the same arguments give the same bytes on any machine.

    Args:
        kind: one of KINDS.
        seed, index: from 0.
        size: side, pixels, at least 64.
        parameters: what is to differ from the defaults, by the names of the kind's dataclass.

    Returns:
        size x size x 3 uint8 image; N x size x size bool masks, N being the exact count; N class indices.

    Raises:
        DatasetError: the kind or a parameter is unknown, or a value cannot be.
    """
    _require(seed=(seed, 0), index=(index, 0), size=(size, _SMALLEST_SIZE))
    return _kind_of(kind).draw(seed, index, size, _parameters_of(kind, parameters))


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
    _require(count=(count, 1), seed=(seed, 0), size=(size, _SMALLEST_SIZE))
    chosen = asdict(_parameters_of(kind, parameters))
    # As JSON gives it back, which knows no tuples.
    recipe = {"version": VERSION, "kind": kind, "count": count, "seed": seed, "size": size, "parameters": chosen}
    recipe = json.loads(json.dumps(recipe))
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
    drawn = _kind_of(kind)
    parameters = _parameters_of(kind, recipe["parameters"])
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
        counts = Counter(annotation["image_id"] for annotation in annotations)
        rows = "".join(f"{image['file_name']},{counts[image['id']]}\n" for image in images)
        (folder / "counts.csv").write_text(f"image,count\n{rows}")
    (folder / "recipe.json").write_text(json.dumps(recipe))


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


def _kind_of(kind: str) -> Kind:
    """The entry of KINDS, or a DatasetError that lists them."""
    if kind not in KINDS:
        raise DatasetError(f"procedural images of kind {kind!r}: expected one of {', '.join(KINDS)}")
    return KINDS[kind]


def _parameters_of(kind: str, changes: Mapping[str, Any]) -> Any:
    """The kind's defaults with some of them changed; DatasetError if one does not exist or has no such value."""
    defaults = _kind_of(kind).defaults
    known = asdict(defaults)
    for name, value in changes.items():
        where = f"procedural images of kind {kind!r}: parameter {name!r}"
        if name not in known:
            raise DatasetError(f"{where} does not exist; expected one of {', '.join(known)}")
        if not _is_like(known[name], value):
            raise DatasetError(
                f"{where} is {value!r}; expected numbers of {known[name]}'s types, not negative, in rising order"
            )
    changed = {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in changes.items()}
    try:
        return replace(defaults, **changed)
    except ValueError as error:
        raise DatasetError(f"procedural images of kind {kind!r}: {error}") from error


def _is_like(default: Any, value: Any) -> bool:
    if isinstance(default, tuple):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(default)
            and all(map(_is_like, default, value))
            and (len(value) != 2 or value[0] <= value[1])
        )
    if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else (int, float)):
        return False
    # What has a negative default may be negative.
    return (-_LARGEST if default < 0 else 0) <= value <= _LARGEST


def _require(**numbers: tuple[Any, int]) -> None:
    """DatasetError unless each is a whole number and not below the least one beside it."""
    for name, (value, least) in numbers.items():
        if not isinstance(value, int) or value < least:
            raise DatasetError(f"procedural images: {name} is {value!r}; expected a whole number of at least {least}")
