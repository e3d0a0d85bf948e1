"""BBBC038 (Data Science Bowl 2018) as published: `<id>/images/<id>.png` and `<id>/masks/*.png`, one PNG a nucleus."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cupre_d2.data.formats.image_folder import image_size
from cupre_d2.data.formats.masks import check_shape, mask_to_annotation, read_mask
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)


def list_ids(folder: Path) -> list[str]:
    """Image ids, which are the names of the sub-folders, sorted; sub-folders without images are counted and logged.

    Raises:
        DatasetError: the folder is missing or has no sub-folder with images.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected one sub-folder an image, <id>/images and <id>/masks")
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    ids = sorted(entry.name for entry in folders if (entry / "images").is_dir())
    if not ids:
        raise DatasetError(f"{folder}: no image; expected one sub-folder an image, <id>/images and <id>/masks")
    if len(ids) < len(folders):
        logger.warning("%s: left out %d sub-folders that have no folder images", folder, len(folders) - len(ids))
    return ids


def load_images(folder: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Records without annotations, which spares reading the masks; otherwise as `load_mask_files`."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda image_id: _image(folder, image_id), ids))


def load_mask_files(folder: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Records of the images `ids`, in that order; every mask file is one instance of category 0, its mask an RLE.

    Any pixel above 0 belongs to the nucleus. Empty masks and files that are no PNG are left out, counted and logged.

    Raises:
        DatasetError: an image or its folder of masks is missing or cannot be read, or a mask has another size.
    """
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda image_id: _annotated_image(folder, image_id), ids))
    files: Counter[str] = sum((counts for _, counts in found), Counter())
    for what in ("empty", "no PNG"):
        if files[what]:
            logger.warning("%s: left out %d of %d mask files, which are %s", folder, files[what], files["all"], what)
    return [record for record, _ in found]


def _image(folder: Path, image_id: str) -> dict[str, Any]:
    file = (folder / image_id / "images" / f"{image_id}.png").absolute()
    height, width = image_size(file)
    return {"file_name": str(file), "image_id": image_id, "height": height, "width": width}


def _annotated_image(folder: Path, image_id: str) -> tuple[dict[str, Any], Counter[str]]:
    """A record, and how many files its masks are, and of those left out."""
    record = _image(folder, image_id)
    masks = folder / image_id / "masks"
    if not masks.is_dir():
        raise DatasetError(f"{masks}: no such folder; expected one PNG a nucleus")
    files = sorted(entry for entry in masks.iterdir() if not entry.name.startswith("."))
    annotations = [_mask(file, record["height"], record["width"]) for file in files if file.suffix.lower() == ".png"]
    record["annotations"] = [annotation for annotation in annotations if annotation]
    counts = {
        "all": len(files),
        "no PNG": len(files) - len(annotations),
        "empty": len(annotations) - len(record["annotations"]),
    }
    return record, Counter(counts)


def _mask(file: Path, height: int, width: int) -> dict[str, Any] | None:
    mask = read_mask(file)
    check_shape(file, mask.shape, height, width)
    return mask_to_annotation(mask)
