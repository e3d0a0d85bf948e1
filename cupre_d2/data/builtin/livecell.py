"""LIVECell: all cell types, each of the eight, and the publisher's own few-shot splits."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from cupre_d2.data.builtin.entry import CocoFiles, Part, PublicDataset, Role, Split
from cupre_d2.data.catalog import Record, check_categories
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.image_folder import load_image_folder
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

TYPES = ("a172", "bt474", "bv2", "huh7", "mcf7", "shsy5y", "skbr3", "skov3")
_CLASSES = ("cell",)
# Entries of the JSON; 65 of the training ones are repeated (facts §3.6).
_ENTRIES: dict[Role, int] = {"train": 3253, "val": 570, "test": 1564}
_TRAIN_VAL, _TEST = "livecell/images/livecell_train_val_images", "livecell/images/livecell_test_images"
_UNLABELED = "livecell/images/unlabeled"
_FRACTIONS = (2, 4, 5, 25, 50)


def load(root: Path, files: CocoFiles, cell_type: str | None = None) -> list[Record]:
    """LIVECell, all cell types or one; the publisher's separate files for each type hold the same annotations.

    The pixels are taken as they are, without contrast normalisation: the pixel statistics of the published models
    (facts §3.3) are those of the raw images.
    """
    json_file = root / files.json_file
    records, categories = load_coco_json(json_file, root / files.image_root, files.locate)
    check_categories(json_file, categories, _CLASSES)
    _describe(records)
    if cell_type is None:
        return records
    of_type = [record for record in records if record.get("cell_type") == cell_type]
    if not of_type:
        raise DatasetError(f"{json_file}: no image of cell type {cell_type}; expected file names {cell_type}_..., any case")
    return of_type


def load_unlabeled(root: Path) -> list[Record]:
    """The images that LIVECell's archive holds without annotations."""
    records = load_image_folder(root / _UNLABELED)
    _describe(records)
    return records


def locate(folder: Path, file_name: str) -> Path:
    """Right in the folder, or in its sub-folder for the cell type, as some releases have it."""
    flat, nested = folder / file_name, folder / file_name.split("_")[0] / file_name
    return nested if nested.is_file() and not flat.is_file() else flat


def fields(file_name: str) -> dict[str, Any]:
    """How to read an image, and its cell_type (lower case) from the prefix of its name, where it is a known one."""
    prefix = Path(file_name).name.split("_")[0].lower()
    return {"percentiles": None} | ({"cell_type": prefix} if prefix in TYPES else {})


def _describe(records: Iterable[Record]) -> None:
    unknown = []
    for record in records:
        record.update(fields(record["file_name"]))
        if "cell_type" not in record:
            unknown.append(record["file_name"])
    if unknown:
        logger.warning("LIVECell: no known cell type in the name of %d images, the first %s", len(unknown), unknown[0])


def _split(name: str, role: Role, json_file: str, images: int | None = None, cell_type: str | None = None) -> Split:
    files = CocoFiles(json_file, _TEST if role == "test" else _TRAIN_VAL, locate, fields)
    loaded = partial(load, files=files, cell_type=cell_type)
    return Split(name, role, (json_file, files.image_root), loaded, images, _CLASSES, files, derived=bool(cell_type))


def _json(role: Role) -> str:
    return f"livecell/annotations/LIVECell/livecell_coco_{role}.json"


LIVECELL = PublicDataset(
    name="livecell",
    title="LIVECell",
    task="instances",
    licence="CC BY-NC 4.0 (not for commercial use)",
    citation="Edlund et al., LIVECell: a large-scale dataset for label-free live cell segmentation, Nature Methods 2021",
    homepage="sartorius-research.github.io/LIVECell",
    get="images.zip and the three JSON files of LIVECell_dataset_2021/annotations/LIVECell; about 3 GB",
    parts=(
        Part(_TRAIN_VAL, ("images.zip",)),
        Part(_TEST, ("images.zip",)),
        *(Part(_json(role)) for role in _ENTRIES),
        Part("livecell/annotations/LIVECell_dataset_size_split", optional=True),
    ),
    image_files=(f"{_TRAIN_VAL}/**/*.tif", f"{_TEST}/**/*.tif"),
    images=5239,
    splits=(
        *(_split(f"livecell_{role}", role, _json(role), images) for role, images in _ENTRIES.items()),
        *(_split(f"livecell_{kind}_{role}", role, _json(role), None, kind) for kind in TYPES for role in _ENTRIES),
        *(
            _split(
                f"livecell_publisher{percent}pct_train",
                "train",
                f"livecell/annotations/LIVECell_dataset_size_split/{number}_train{percent}percent.json",
            )
            for number, percent in enumerate(_FRACTIONS)
        ),
        Split("livecell_unlabeled", "unlabeled", (_UNLABELED,), load_unlabeled),
    ),
)
