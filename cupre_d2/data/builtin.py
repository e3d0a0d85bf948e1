"""The data sets of the paper, by name. Each is read from $DETECTRON2_DATASETS, in its publisher's layout, when used.

Sources and layouts: datasets/README.md.
"""

import copy
import csv
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from detectron2.data import DatasetCatalog

from cupre_d2.data.catalog import Record, datasets_root, missing_path_error, register_records
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.image_folder import load_image_folder
from cupre_d2.data.formats.mask_files import list_ids, load_images, load_mask_files
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
LIVECELL_TYPES = ("a172", "bt474", "bv2", "huh7", "mcf7", "shsy5y", "skbr3", "skov3")

_LIVECELL_IMAGES = {
    "train": "livecell/images/livecell_train_val_images",
    "val": "livecell/images/livecell_train_val_images",
    "test": "livecell/images/livecell_test_images",
}
_LIVECELL_UNLABELED = "livecell/images/unlabeled"
_BBBC038 = "bbbc038/stage1_train"


@dataclass(frozen=True)
class BuiltIn:
    """One name of the table."""

    name: str
    # Files and folders it needs, relative to the root; without one of them the data set counts as absent.
    requires: tuple[str, ...]
    # Reads the records, given the root.
    load: Callable[[Path], list[Record]]

    def missing(self, root: Path) -> Path | None:
        """The first of the required paths that does not exist."""
        return next((root / path for path in self.requires if not (root / path).exists()), None)

    def records(self) -> list[Record]:
        """The records under the root of this moment.

        Raises:
            DatasetError: a required path is missing, or the reader finds something wrong.
        """
        root = datasets_root()
        missing = self.missing(root)
        if missing is not None:
            raise missing_path_error(self.name, missing)
        return self.load(root)


def register_builtin_datasets() -> None:
    """Registers the table below; doing it again does nothing."""
    for entry in TABLE:
        if entry.name not in DatasetCatalog:
            register_records(entry.name, entry.records)


def _livecell_json(split: str) -> str:
    return f"livecell/annotations/LIVECell/livecell_coco_{split}.json"


def _livecell(root: Path, split: str, cell_type: str | None = None) -> list[Record]:
    """LIVECell, all cell types or one; the publisher's separate files for each type hold the same annotations."""
    json_file = root / _livecell_json(split)
    records, _ = load_coco_json(json_file, root / _LIVECELL_IMAGES[split], _locate_livecell)
    _set_livecell_types(records)
    if cell_type is None:
        return records
    of_type = [record for record in records if record.get("cell_type") == cell_type]
    if not of_type:
        raise DatasetError(f"{json_file}: no image of cell type {cell_type}; expected file names {cell_type}_..., any case")
    return of_type


def _locate_livecell(folder: Path, file_name: str) -> Path:
    """Right in the folder, or in its sub-folder for the cell type, as some releases have it."""
    flat, nested = folder / file_name, folder / file_name.split("_")[0] / file_name
    return nested if nested.is_file() and not flat.is_file() else flat


def _set_livecell_types(records: Iterable[Record]) -> None:
    """Sets cell_type (lower case) from the prefix of the file name."""
    unknown = []
    for record in records:
        prefix = Path(record["file_name"]).name.split("_")[0].lower()
        if prefix in LIVECELL_TYPES:
            record["cell_type"] = prefix
        else:
            unknown.append(record["file_name"])
    if unknown:
        logger.warning("LIVECell: no known cell type in the name of %d images, the first %s", len(unknown), unknown[0])


def _livecell_unlabeled(root: Path) -> list[Record]:
    records = load_image_folder(root / _LIVECELL_UNLABELED)
    _set_livecell_types(records)
    return records


def _bbbc038(root: Path, split: str) -> list[Record]:
    return copy.deepcopy(_bbbc038_cached(root, split))


@lru_cache(maxsize=len(SPLITS))
def _bbbc038_cached(root: Path, split: str) -> list[Record]:
    """Kept in memory: decoding the masks takes seconds, and few-shot subsets of one set read it again."""
    records = load_mask_files(root / _BBBC038, _bbbc038_ids(root, split))
    return _with_bbbc038_types(records, root)


def _bbbc038_images(root: Path, split: str) -> list[Record]:
    return _with_bbbc038_types(load_images(root / _BBBC038, _bbbc038_ids(root, split)), root)


def _bbbc038_ids(root: Path, split: str) -> list[str]:
    """The ids of one split: 80, 10 and 10 % of those on disk, 536/67/67 of all 670 as the paper says.

    Which images it had in which split the paper does not say. We order the ids by a hash, so that the split is
    random with respect to content and the same on every machine.
    """
    ids = sorted(list_ids(root / _BBBC038), key=lambda i: hashlib.sha256(f"bbbc038:{i}".encode()).hexdigest())
    cuts = [0, round(0.8 * len(ids)), round(0.9 * len(ids)), len(ids)]
    start, end = cuts[SPLITS.index(split) :][:2]
    if start == end:
        raise DatasetError(f"{root / _BBBC038}: {len(ids)} images, too few for a {split} split; expected at least 10")
    return ids[start:end]


def _with_bbbc038_types(records: list[Record], root: Path) -> list[Record]:
    """Sets cell_type from bbbc038/types.csv where there is one; returns the records."""
    file = root / "bbbc038/types.csv"
    if not file.exists():
        return records
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"image_id", "type"} <= set(reader.fieldnames or ()):
            raise DatasetError(f"{file}: columns {reader.fieldnames}; expected image_id,type")
        types = {row["image_id"]: row["type"] for row in reader if row["type"]}
    for record in records:
        if record["image_id"] in types:
            record["cell_type"] = types[record["image_id"]]
    typed = sum("cell_type" in record for record in records)
    if 0 < typed < len(records):
        logger.warning("%s: no type for %d of %d images", file, len(records) - typed, len(records))
    return records


def _cells_unlabeled(root: Path) -> list[Record]:
    """The cell images AMT² learns from: training and unlabeled images of the sources that are on disk, each file once.

    The paper contradicts itself on BBBC038 (facts §3.5 point 6): §III-A uses it in pre-training, §IV-B says it never
    is. We take its training images, as §III-A does, and no image of a validation or test split: LIVECell's training
    and validation files share a few images (its issue #26), which are left out here.

    Raises:
        DatasetError: no source is on disk.
    """
    records: dict[str, Record] = {}
    repeated = 0
    absent = []
    for name, load in _UNLABELED_PARTS.items():
        missing = _entry(name).missing(root)
        if missing is not None:
            logger.warning("cells_unlabeled: goes without %s, as there is no %s", name, missing)
            absent.append(missing)
            continue
        part = load(root)
        repeated += len(part) - len({record["file_name"] for record in part} - records.keys())
        records |= {record["file_name"]: record for record in part}
    if not records:
        raise missing_path_error("cells_unlabeled", *absent)
    held_out = _livecell_files(root, "val") & records.keys()
    logger.info(
        "cells_unlabeled: %d images; left out %d repeated entries and %d images of livecell_val",
        len(records) - len(held_out),
        repeated,
        len(held_out),
    )
    return [
        {key: value for key, value in record.items() if key != "annotations"}
        for file, record in records.items()
        if file not in held_out
    ]


def _livecell_files(root: Path, split: str) -> set[str]:
    if _entry(f"livecell_{split}").missing(root) is not None:
        return set()
    return {record["file_name"] for record in _livecell(root, split)}


def _entry(name: str) -> BuiltIn:
    return next(entry for entry in TABLE if entry.name == name)


# The union: names of the table, and how to read their images.
_UNLABELED_PARTS: dict[str, Callable[[Path], list[Record]]] = {
    "livecell_train": partial(_livecell, split="train"),
    "livecell_unlabeled": _livecell_unlabeled,
    "bbbc038_train": partial(_bbbc038_images, split="train"),
    # EVICAN and the Cell Tracking Challenge sets join here.
}


def _livecell_entry(split: str, cell_type: str | None = None) -> BuiltIn:
    return BuiltIn(
        f"livecell_{cell_type}_{split}" if cell_type else f"livecell_{split}",
        (_livecell_json(split), _LIVECELL_IMAGES[split]),
        partial(_livecell, split=split, cell_type=cell_type),
    )


TABLE: tuple[BuiltIn, ...] = (
    # COCO 2017 is not here: coco_2017_train and coco_2017_val are Detectron2's own.
    *(_livecell_entry(split, cell_type) for cell_type in (None, *LIVECELL_TYPES) for split in SPLITS),
    BuiltIn("livecell_unlabeled", (_LIVECELL_UNLABELED,), _livecell_unlabeled),
    *(BuiltIn(f"bbbc038_{split}", (_BBBC038,), partial(_bbbc038, split=split)) for split in SPLITS),
    BuiltIn("cells_unlabeled", (), _cells_unlabeled),
    # Later data sets (EVICAN, Cell Tracking Challenge, BBBC039, ...): one entry each, their reader in formats/.
)
