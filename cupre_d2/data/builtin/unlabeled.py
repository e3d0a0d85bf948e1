"""The cell images that AMT² learns from: a union of the catalogue's sources, without annotations."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cupre_d2.data.builtin import bbbc, livecell
from cupre_d2.data.builtin.coco import EVICAN
from cupre_d2.data.builtin.ctc import CTC
from cupre_d2.data.builtin.entry import Split
from cupre_d2.data.builtin.livecell import LIVECELL
from cupre_d2.data.catalog import Record, missing_path_error

logger = logging.getLogger(__name__)


def load_cells_unlabeled(root: Path) -> list[Record]:
    """Training and unlabeled images of the sources that are on disk, each file once.

    CUPre's Table I lists LIVECell, EVICAN and seven sets of the Cell Tracking Challenge. The paper contradicts itself
    on BBBC038 (facts §3.5 point 6): §III-A uses it in pre-training, §IV-B says it never is. We take its training
    images, as §III-A does, and no image of a validation or test split: LIVECell's training and validation files share
    a few images (its issue #26), which are left out here.

    Raises:
        DatasetError: no source is on disk.
    """
    records: dict[str, Record] = {}
    repeated = 0
    absent = []
    for split, load in _sources():
        missing = split.missing(root)
        if missing is not None:
            logger.warning("cells_unlabeled: goes without %s, as there is no %s", split.name, missing)
            absent.append(missing)
            continue
        part = load(root)
        repeated += len(part) - len({record["file_name"] for record in part} - records.keys())
        records |= {record["file_name"]: record for record in part}
    if not records:
        raise missing_path_error("cells_unlabeled", *absent)
    held_out = _held_out_files(root) & records.keys()
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


def _sources() -> list[tuple[Split, Callable[[Path], list[Record]]]]:
    """Splits, and how to read their images."""
    named = {split.name: split for dataset in (LIVECELL, bbbc.BBBC038, EVICAN, *CTC) for split in dataset.splits}
    joining = [name for name in named if name.startswith(("evican_", "ctc_")) and name.endswith("_unlabeled")]
    sources = [(named[name], named[name].load) for name in ("livecell_train", "livecell_unlabeled", *joining)]
    return [*sources, (named["bbbc038_train"], partial(bbbc.load_bbbc038_images, role="train"))]


def _held_out_files(root: Path) -> set[str]:
    split = next(split for split in LIVECELL.splits if split.name == "livecell_val")
    if split.missing(root) is not None or split.coco is None:
        return set()
    return {record["file_name"] for record in livecell.load(root, split.coco)}


CELLS_UNLABELED = Split("cells_unlabeled", "unlabeled", (), load_cells_unlabeled)
