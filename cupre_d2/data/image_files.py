"""Decoding an image file, whatever its format: the one place that knows what decoders raise."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from cupre_d2.data import tiff
from cupre_d2.data.raster import Raster, check_size, choose_page, look_up, swaps_sides, turn
from cupre_d2.errors import DatasetError

# What Pillow is let read; it would guess at far more, some through other programs.
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_ORIENTATION = 0x0112
# Where PNG's header has the bits of a sample.
_PNG, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24


def read_raster(path: str | os.PathLike[str], page: int | None = None, stored: bool = False) -> Raster:
    """Decodes an image: TIFF, PNG, JPEG, BMP or WebP, told by content, not by the file name's ending.

    A page is one image of a stack in time, depth or position, with all of its channels; of a TIFF the axes in its
    metadata (OME, ImageJ, LSM, tifffile's own) tell pages from channels. Without metadata each directory is a page.
    Thumbnails and the lower levels of a pyramid are none, nor are the other pictures of a camera's JPEG. The image is
    turned as its TIFF or EXIF orientation says, MinIsWhite is inverted, a palette is looked up, CMYK becomes RGB.

    Args:
        path: the file.
        page: which page, from 0; may be None if there is one.
        stored: the numbers as they are stored, for masks and label images: a palette is not looked up, nor MinIsWhite
            inverted (which tifffile writes of any bool array).

    Raises:
        DatasetError: the file is missing, broken, truncated or no such image; it decodes to more than
            `raster.MAX_BYTES`; it is a stack and no page is asked for, or has no such page.
    """
    path = Path(path)
    with _decoding(path), path.open("rb") as file:
        head = _head(file)
        if head.startswith(tiff.MAGIC):
            return tiff.read_tiff(path, page, stored)
        return _read_other(path, file, page, head, stored)


def page_count(path: str | os.PathLike[str]) -> int:
    """Number of pages of an image, 1 but for stacks; from its headers.

    Raises:
        DatasetError: as `read_raster`.
    """
    path = Path(path)
    with _decoding(path), path.open("rb") as file:
        if _head(file).startswith(tiff.MAGIC):
            return tiff.count_pages(path)
        with Image.open(file, formats=_PILLOW_FORMATS) as image:
            return _frames(image)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width in pixels of an image, or of the first page of a stack, from its header; upright.

    Raises:
        DatasetError: the file is missing, or is no image that can be read.
    """
    path = Path(path)
    with _decoding(path), path.open("rb") as file:
        if _head(file).startswith(tiff.MAGIC):
            return tiff.read_size(path)
        with Image.open(file, formats=_PILLOW_FORMATS) as image:
            width, height = image.size
            return (width, height) if swaps_sides(_orientation(image)) else (height, width)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Makes one line of whatever comes up while a file is decoded.

    Broken files bring out nearly every exception there is (struct.error, KeyError, ZeroDivisionError, MemoryError,
    zlib.error, imagecodecs' own ...), so a list would never be complete.
    """
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such image") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path}: cannot be read as an image (expected TIFF, PNG, JPEG, BMP or WebP)") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{path}: cannot be read as an image ({reason})") from error


def _head(file: BinaryIO) -> bytes:
    return file.read(_PNG_DEPTH + 1)


def _read_other(path: Path, file: BinaryIO, page: int | None, head: bytes, stored: bool) -> Raster:
    with Image.open(file, formats=_PILLOW_FORMATS) as image:
        image.seek(choose_page(path, page, _frames(image)))
        deep = head.startswith(_PNG) and head[_PNG_DEPTH] == 16
        check_size((image.height, image.width, len(image.getbands())), 2 if deep else 1)
        orientation = _orientation(image)
        if deep:
            # Pillow cuts off the lower half of 16-bit colours.
            if image.tell():
                raise ValueError("an animation of 16 bits")
            samples = imagecodecs.png_decode(path.read_bytes())
        else:
            image.load()
            samples = np.asarray(image) if stored and image.mode == "P" else _samples(image)
        samples = samples.reshape(image.height, image.width, -1)
        return Raster(turn(samples, orientation), 16 if deep else 8, samples.shape[2] in (2, 4))


def _samples(image: Image.Image) -> np.ndarray:
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return look_up(np.asarray(image), palette)
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    return np.asarray(image)


def _frames(image: Image.Image) -> int:
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _orientation(image: Image.Image) -> object:
    """Of EXIF in the header; PNG's belongs there too, and Pillow would decode a whole PNG to look for a late one."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return None
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:
        # Common in photographs, whose pixels are none the worse; Detectron2 passes over it too.
        return None
