"""COCO's instances JSON, read with the checks that Detectron2's own reader leaves to a crash during training."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

from cupre_d2.data.cache import cached
from cupre_d2.data.formats.coco_arrays import CocoArrays, Image, parse
from cupre_d2.data.formats.coco_explain import SHOWN_PATH, explain, shown
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)


def _in_folder(folder: Path, file_name: str) -> Path:
    return folder / file_name


def load_coco_json(
    json_file: Path, image_root: Path, locate: Callable[[Path, str], Path] = _in_folder
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Reads a COCO instances file.

    Polygons stay polygons, each a float64 array x, y, x, y, ...; RLE stays RLE (compressed, counts as str). An annotation
    has the "area" that the file states, if any, which COCO's evaluation goes by, and "iscrowd" where it is 1. An image
    without annotations keeps an empty list; its "cell_type", if any, becomes the record's. Annotations without a mask or
    with a degenerate one (a polygon of fewer than three points, an RLE without a pixel, a box without area) are left
    out, counted and logged.
    A big file is parsed once and then read from a cache (see `data.cache`).

    Args:
        json_file: the annotations.
        image_root: the folder that the file names in it are relative to.
        locate: finds an image given image_root and its file name, for sets whose folders differ from the JSON.

    Returns:
        The records, in the file's order, category ids 0-based in order of the file's ids; and the categories, id in the
        file to name, in that order.

    Raises:
        DatasetError: a file or folder is missing, the file is no JSON or not COCO's, has no image or no category, an
            annotation's image or category is unknown, a mask, box or area is malformed, or an image is not on disk or lies
            outside image_root.
    """

    def use(parsed: CocoArrays) -> tuple[CocoArrays, list[dict[str, Any]]]:
        if not image_root.is_dir():
            raise DatasetError(f"{image_root}: no such folder; expected the images of {json_file}")
        return parsed, parsed.records(_files(json_file, parsed.images, image_root.absolute(), locate))

    try:
        with json_file.open("rb") as stream:
            parsed, records = cached(json_file, stream, _parse_or_explain, use)
    except FileNotFoundError as error:
        raise DatasetError(f"{json_file}: no such file; expected COCO's instances JSON") from error
    except OSError as error:
        raise DatasetError(f"{json_file}: cannot be read ({error.strerror})") from error
    if parsed.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in parsed.skipped.items())
        logger.warning("%s: left out %s (of %d annotations)", json_file, reasons, parsed.total)
    if parsed.repeated:
        logger.warning("%s: %d of %d annotations have the id of another", json_file, parsed.repeated, parsed.total)
    return records, parsed.categories


def _parse_or_explain(json_file: Path, content: Any) -> CocoArrays:
    """The fast way says only that something is wrong; the slow one says what."""
    return parse(content) or explain(json_file, bytes(content))


def _files(json_file: Path, images: Sequence[Image], image_root: Path, locate: Callable[[Path, str], Path]) -> list[Path]:
    """Where the images are; all of them must be there, below image_root."""
    files, missing = [], []
    is_file = _Listing()
    for image in images:
        path = PurePath(image.file_name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in image.file_name:
            name = f"image {shown(image.id)}, field file_name: {shown(image.file_name, SHOWN_PATH)}"
            raise DatasetError(f"{json_file}: {name}; expected a path below {image_root}")
        file = image_root / path
        try:
            file = locate(image_root, image.file_name)
            found = is_file(file)
        # A name that is too long, or that the file system cannot spell; a folder that may not be searched.
        except (OSError, ValueError):
            found = False
        if found:
            files.append(file)
        else:
            missing.append((image.id, file))
    if missing:
        name = f"image {shown(missing[0][0])}, field file_name: {shown(str(missing[0][1]), SHOWN_PATH)}"
        raise DatasetError(f"{json_file}: {name} is not on disk ({len(missing)} of {len(images)} images are not)")
    return files


class _Listing:
    """Whether files exist, asked of their folders as a whole: a question a file takes minutes on network file systems."""

    def __init__(self) -> None:
        self._folders: dict[Path, set[str]] = {}

    def __call__(self, file: Path) -> bool:
        folder = file.parent
        if folder not in self._folders:
            self._folders[folder] = _list_files(folder)
        # What is not in the list may be there all the same, where upper and lower case are one.
        return file.name in self._folders[folder] or file.is_file()


def _list_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
