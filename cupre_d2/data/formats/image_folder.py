"""Folders of images: unlabeled, or one a class."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cupre_d2.data.image_files import image_size
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
TIFF_SUFFIXES = (".tif", ".tiff")


def load_image_folder(folder: Path) -> list[dict[str, Any]]:
    """Records without "annotations", one for each image right in the folder, sorted by file name.

    image_id is the file name: unlike the stem it is unique in a folder, and it is the same on every machine.

    Raises:
        DatasetError: the folder is missing or holds no image, or an image cannot be read.
    """
    return in_threads(lambda file: image_record(file, file.name), list_images(folder))


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


def list_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Absolute paths of the images right in a folder, sorted by name; other files are counted and logged.

    Raises:
        DatasetError: the folder is missing, cannot be read, or holds no image.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected a folder of images")
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in suffixes]
    if not images:
        raise DatasetError(f"{folder}: no image; expected files that end in {', '.join(suffixes)}")
    if len(images) < len(files):
        others = Counter(file.suffix or file.name for file in files if file.suffix.lower() not in suffixes)
        logger.info("%s: left out %d files that are not such images: %s", folder, others.total(), dict(others))
    return images


def image_record(file: Path, image_id: str) -> dict[str, Any]:
    """A record without annotations, its size from the image's header; raises DatasetError if it cannot be read."""
    height, width = image_size(file)
    return {"file_name": str(file), "image_id": image_id, "height": height, "width": width}


def in_threads(function: Callable[..., Result], *items: Iterable[Any]) -> list[Result]:
    """As `map`, a list; threads hide the waiting of network file systems."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, *items))


def image_sizes(files: list[Path]) -> Iterator[tuple[int, int]]:
    """`image_size` of each file, in order, as they are asked for."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(image_size, files)
