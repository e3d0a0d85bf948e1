"""COCO's instances JSON, read with the checks that Detectron2's own reader leaves to a crash during training."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

from cupre_d2.data.cache import cached
from cupre_d2.data.formats.coco_arrays import CocoArrays, Image, parse
from cupre_d2.data.formats.coco_explain import explain
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)


def _in_folder(folder: Path, file_name: str) -> Path:
    return folder / file_name


def load_coco_json(
    json_file: Path, image_root: Path, locate: Callable[[Path, str], Path] = _in_folder
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Reads a COCO instances file.

    Polygons stay polygons, each a float64 array x, y, x, y, ...; RLE stays RLE (compressed, counts as str), crowds stay
    with iscrowd 1, an image without annotations keeps an empty list. Annotations without a mask or with a degenerate one
    (a polygon of fewer than three points, an RLE without a pixel, a box without area) are left out, counted and logged.
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
            annotation's image or category is unknown, a mask or box is malformed, or an image is not on disk or lies
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
    return records, parsed.categories


def _parse_or_explain(json_file: Path, content: Any) -> CocoArrays:
    """The fast way says only that something is wrong; the slow one says what."""
    return parse(content) or explain(json_file, bytes(content))


def _files(json_file: Path, images: Sequence[Image], image_root: Path, locate: Callable[[Path, str], Path]) -> list[Path]:
    """Where the images are; all of them must be there, below image_root."""
    files, missing = [], []
    for image in images:
        name = f"image {image.id}, field file_name"
        path = PurePath(image.file_name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in image.file_name:
            raise DatasetError(f"{json_file}: {name}: {image.file_name!r}; expected a path below {image_root}")
        file = locate(image_root, image.file_name)
        if not _is_file(file):
            missing.append(f"{name}: {file}")
        files.append(file)
    if missing:
        raise DatasetError(f"{json_file}: {missing[0]} is not on disk ({len(missing)} of {len(images)} images are not)")
    return files


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
