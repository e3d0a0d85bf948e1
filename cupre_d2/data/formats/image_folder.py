"""A folder of images without annotations."""

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tifffile
from PIL import Image

from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
TIFF_SUFFIXES = (".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112


def load_image_folder(folder: Path) -> list[dict[str, Any]]:
    """Records without "annotations", one for each image right in the folder, sorted by file name.

    image_id is the file name: unlike the stem it is unique in a folder, and it is the same on every machine.

    Raises:
        DatasetError: the folder is missing or holds no image, or an image cannot be read.
    """
    files = list_images(folder)
    return [
        {"file_name": str(file), "image_id": file.name, "height": height, "width": width}
        for file, (height, width) in zip(files, image_sizes(files), strict=True)
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


def image_sizes(files: list[Path]) -> Iterator[tuple[int, int]]:
    """`image_size` of each file, in order; threads hide the waiting of network file systems."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(image_size, files)


def image_size(file: Path) -> tuple[int, int]:
    """Height and width of an image in pixels, from its header, after the rotation that EXIF asks for.

    Of a TIFF with several pages it is the first page's. TIFFs go through tifffile, which knows the 16-bit
    and many-channel ones that Pillow refuses.

    Raises:
        DatasetError: the file is missing, or is no image that can be read.
    """
    try:
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                page = tiff.pages.first
                return page.imagelength, page.imagewidth
        with Image.open(file) as image:
            width, height = image.size
            # Only JPEG carries its EXIF in the header; Pillow would decode a whole PNG to look for it.
            turned = image.format == "JPEG" and image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
            return (width, height) if turned else (height, width)
    except FileNotFoundError as error:
        raise DatasetError(f"{file}: no such image") from error
    except (OSError, ValueError, IndexError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{file}: cannot be read as an image ({reason})") from error
