"""Images in one folder a class, for classification."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cupre_d2.data.formats.image_folder import IMAGE_SUFFIXES, load_image_folder
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)


def load_class_folders(folder: Path, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Records with "label", the class's place in `classes`; class by class, each sorted by file name.

    image_id is `CLASS/FILE`. Folders that are no class, and images in none, are counted and logged.

    Raises:
        DatasetError: the folder or one of a class is missing, or an image cannot be read.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected its sub-folders {', '.join(classes)}")
    others = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in classes)
    if others:
        logger.warning("%s: left out %d folders that are no class: %s", folder, len(others), ", ".join(others))
    stray = sum(entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())
    if stray:
        logger.warning("%s: left out %d images that lie in no class's folder", folder, stray)
    return [
        record | {"image_id": f"{name}/{record['image_id']}", "label": label}
        for label, name in enumerate(classes)
        for record in load_image_folder(folder / name)
    ]
