"""Image files, decoded before anything is made of them for a model: through tifffile, and through Pillow.

tifffile's leniency with broken files is taken back here: it logs that a file is broken and goes on with what is left of
it, fills what is missing with zeros, and opens other files that the metadata name. Here a broken file raises, and no
other file is opened.
"""

import itertools
import logging
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from cupre_d2.errors import DatasetError

# Bytes of one decoded image; Pillow's own measure of a decompression bomb, a quarter gigabyte.
MAX_BYTES = 2**28
# What Pillow is let read; it would guess at far more, some through other programs.
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# The tag of TIFF and of EXIF.
_ORIENTATION = 0x0112
# Where PNG's header has the bits of a sample.
_PNG, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24
# Classic and BigTIFF, of either byte order.
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
# Their decoders turn YCbCr into RGB.
_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY)

_errors: ContextVar[list[str] | None] = ContextVar("errors of the TIFF being read", default=None)


@dataclass(frozen=True)
class Raster:
    """An image as its file has it, upright and with palettes looked up.

    Attributes:
        samples: HxWxC array of bool, whole numbers or floats, in the machine's byte order.
        bits: bits of a sample that count; 12 for a uint16 that holds values of 12 bits.
        alpha: whether the file says that the last channel is transparency.
    """

    samples: np.ndarray
    bits: int
    alpha: bool


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
            MAX_BYTES; it is a stack and no page is asked for, or has no such page.
    """
    path = Path(path)
    with decoding(path), path.open("rb") as file:
        head = _head(file)
        if head.startswith(_TIFF_MAGIC):
            return _read_tiff(path, page, stored)
        return _read_other(path, file, page, head, stored)


@dataclass(frozen=True)
class PageHeader:
    """What a file says of a page before anything is decoded.

    Attributes:
        shape: height and width in pixels, upright.
        channels: of its samples, alpha counted; a palette is taken for one of colours.
        bits: of a sample.
        nbytes: of its samples, decoded.
        regions: whether `read_region` reads a part without decoding all of it.
    """

    shape: tuple[int, int]
    channels: int
    bits: int
    nbytes: int
    regions: bool


def read_headers(path: str | os.PathLike[str]) -> list[PageHeader]:
    """The header of each page, in order; what makes a page says `read_raster`.

    Raises:
        DatasetError: as `read_raster`.
    """
    path = Path(path)
    with decoding(path), path.open("rb") as file:
        head = _head(file)
        if head.startswith(_TIFF_MAGIC):
            with _open_tiff(path) as tiff:
                return [_tiff_header(series.keyframe, len(planes)) for series, planes in _tiff_pages(tiff)]
        with Image.open(file, formats=_PILLOW_FORMATS) as image:
            shape = image.size if _swaps_sides(_orientation(image)) else image.size[::-1]
            channels = {"1": 1, "L": 1, "I;16": 1, "LA": 2, "RGBA": 4}.get(image.mode, 3)
            bits = 16 if _is_deep(head) else 8
            return [PageHeader(shape, channels, bits, math.prod(shape) * channels * bits // 8, False)] * _frames(image)


def read_region(path: str | os.PathLike[str], page: int | None, top: int, left: int, bottom: int, right: int) -> Raster:
    """A part of a page whose header says `regions`, equal to that part of `read_raster`'s; the page may be of any size.

    Tiles and strips of a TIFF that the part touches are decoded, of one that is not compressed the pixels alone are read.

    Args:
        top, left, bottom, right: in pixels, within the page, the last two exclusive.

    Raises:
        DatasetError: as `read_raster`; MAX_BYTES is then the limit of the part, and of a tile or strip.
    """
    path = Path(path)
    with decoding(path), _open_tiff(path) as tiff:
        pages = _tiff_pages(tiff)
        series, planes = pages[_choose_page(path, page, len(pages))]
        keyframe = _checked_keyframe(series, (bottom - top, right - left, series.keyframe.samplesperpixel, len(planes)))
        window = (slice(top, bottom), slice(left, right))
        samples = np.concatenate([_read_plane_region(series, int(plane), window) for plane in planes], axis=2)
        return _interpret(keyframe, samples.astype(samples.dtype.newbyteorder("="), copy=False))


def page_count(path: str | os.PathLike[str]) -> int:
    """Number of pages of an image, 1 but for stacks; from its headers.

    Raises:
        DatasetError: as `read_raster`.
    """
    path = Path(path)
    with decoding(path), path.open("rb") as file:
        if _head(file).startswith(_TIFF_MAGIC):
            return _count_tiff_pages(path)
        with Image.open(file, formats=_PILLOW_FORMATS) as image:
            return _frames(image)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width in pixels of an image, or of the first page of a stack, from its header; upright.

    Raises:
        DatasetError: the file is missing, or is no image that can be read.
    """
    path = Path(path)
    with decoding(path), path.open("rb") as file:
        if _head(file).startswith(_TIFF_MAGIC):
            return _tiff_size(path)
        with Image.open(file, formats=_PILLOW_FORMATS) as image:
            width, height = image.size
            return (width, height) if _swaps_sides(_orientation(image)) else (height, width)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
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
        image.seek(_choose_page(path, page, _frames(image)))
        deep = _is_deep(head)
        _check_size((image.height, image.width, len(image.getbands())), 2 if deep else 1)
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
        return Raster(_turn(samples, orientation), 16 if deep else 8, samples.shape[2] in (2, 4))


def _is_deep(head: bytes) -> bool:
    return head.startswith(_PNG) and head[_PNG_DEPTH] == 16


def _samples(image: Image.Image) -> np.ndarray:
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return _look_up(np.asarray(image), palette)
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


def _check_size(shape: tuple[int, ...], item_bytes: int) -> None:
    """To be called before an image is decoded.

    Raises:
        ValueError: a dimension is no positive number, or the image takes more than MAX_BYTES.
    """
    if not all(isinstance(length, int | np.integer) and length > 0 for length in shape):
        raise ValueError(f"size {' x '.join(map(str, shape))}")
    size = item_bytes
    for length in shape:
        size *= int(length)
    if size > MAX_BYTES:
        raise ValueError(
            f"{' x '.join(map(str, shape))} samples of {item_bytes} bytes; expected at most {MAX_BYTES >> 20} MiB, "
            "so it has to be cut into tiles"
        )


def _choose_page(path: Path, page: int | None, count: int) -> int:
    """The page asked for, of `count`.

    Raises:
        DatasetError: there is no such page, or there are several and none was asked for.
    """
    if page is None and count > 1:
        raise DatasetError(f"{path}: a stack of {count} pages; expected the field page, from 0 to {count - 1}")
    if not isinstance(page or 0, int) or not 0 <= (page or 0) < count:
        raise DatasetError(f"{path}: field page {page!r}: expected a page from 0 to {count - 1}")
    return page or 0


def _turn(samples: np.ndarray, orientation: object) -> np.ndarray:
    """View of an HxWxC array, upright; `orientation` is EXIF's or TIFF's tag, 1 to 8, anything else being 1."""
    if _swaps_sides(orientation):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def _swaps_sides(orientation: object) -> bool:
    """Whether height and width change places in `_turn`."""
    return orientation in (5, 6, 7, 8)


def _look_up(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours HxWx3 of indices HxW into a palette Nx3, or grey values HxWx1 if the palette holds but greys.

    Raises:
        IndexError: an index has no colour.
    """
    if (palette == palette[:, :1]).all():
        palette = palette[:, :1]
    return palette[indices]


# -------------------------------------------------------------------------------------------------------------------- TIFF


def _read_tiff(path: Path, page: int | None, stored: bool) -> Raster:
    """One page of a file; see `read_raster` for what a page is, and `stored`."""
    with _open_tiff(path) as tiff:
        pages = _tiff_pages(tiff)
        series, planes = pages[_choose_page(path, page, len(pages))]
        keyframe = _checked_keyframe(series, (*series.keyframe.shape, len(planes)))
        samples = np.concatenate([_read_plane(series, int(plane)) for plane in planes], axis=2)
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        return _upright(keyframe, samples, keyframe.bitspersample) if stored else _interpret(keyframe, samples)


def _checked_keyframe(series: Any, shape: tuple[int, ...]) -> Any:
    """The series' keyframe, which describes all of its planes.

    Args:
        shape: of what is to be decoded of it.

    Raises:
        ValueError: its samples are no numbers, or there are too many of them.
    """
    keyframe = series.keyframe
    if keyframe.dtype is None or keyframe.dtype.kind not in "buif":
        raise ValueError(f"samples of {keyframe.bitspersample} bits, format {keyframe.sampleformat}")
    for one in (shape, () if keyframe.is_final else keyframe.chunks):
        _check_size(one, keyframe.dtype.itemsize)
    return keyframe


def _tiff_header(keyframe: Any, planes: int) -> PageHeader:
    orientation = keyframe.tags.valueof(_ORIENTATION)
    shape = (keyframe.imagelength, keyframe.imagewidth)
    _check_size(shape, 0)
    palette = keyframe.photometric == PHOTOMETRIC.PALETTE
    channels, bits = (3, 8) if palette else (keyframe.samplesperpixel * planes, keyframe.bitspersample)
    nbytes = math.prod(shape) * channels * (keyframe.dtype.itemsize if keyframe.dtype else 1)
    parts = keyframe.is_final or math.prod(keyframe.chunks) < keyframe.size
    upright = shape[::-1] if _swaps_sides(orientation) else shape
    return PageHeader(upright, channels, bits, nbytes, parts and orientation in (None, 1))


def _count_tiff_pages(path: Path) -> int:
    with _open_tiff(path) as tiff:
        return len(_tiff_pages(tiff))


def _tiff_size(path: Path) -> tuple[int, int]:
    """Height and width of the first page, upright."""
    with _open_tiff(path) as tiff:
        pages: Any = tiff.pages
        page = next((page for page in pages if not page.is_reduced), pages.first)
        height, width = page.imagelength, page.imagewidth
        _check_size((height, width), 0)
        return (width, height) if _swaps_sides(page.tags.valueof(_ORIENTATION)) else (height, width)


def _note_error(record: logging.LogRecord) -> bool:
    errors = _errors.get()
    if errors is None or record.levelno < logging.ERROR:
        return True
    errors.append(record.getMessage())
    return False


logging.getLogger("tifffile").addFilter(_note_error)


@contextmanager
def _open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    _check_directories(path)
    errors: list[str] = []
    token = _errors.set(errors)
    try:
        # These formats are spread over files.
        with tifffile.TiffFile(path, _multifile=False, is_mmstack=False, is_ndtiff=False) as tiff:
            yield tiff
    finally:
        _errors.reset(token)
    if errors:
        raise ValueError(errors[0])


def _check_directories(path: Path) -> None:
    """That the chain of directories ends: tifffile would follow a circle for hours."""
    with path.open("rb") as file:
        head = file.read(4)
        order, big = "<" if head.startswith(b"II") else ">", b"+" in head
        # Of a pointer and of the number of a directory's entries; each entry takes this many bytes.
        pointer, number, entry = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}I", f"{order}H", 12)

        def read(format: str) -> int:
            return struct.unpack(format, file.read(struct.calcsize(format)))[0]

        file.seek(8 if big else 4)
        seen: set[int] = set()
        while directory := read(pointer):
            if directory in seen:
                raise ValueError("its directories form a circle")
            seen.add(directory)
            file.seek(directory)
            file.seek(entry * read(number), os.SEEK_CUR)


def _tiff_pages(tiff: tifffile.TiffFile) -> list[tuple[Any, np.ndarray]]:
    """For each page its series and which of the series' planes are its channels; thumbnails are no pages."""
    series = [one for one in tiff.series if not one.keyframe.is_reduced] or tiff.series
    return [(one, planes) for one in series for planes in _planes(tiff, one)]


def _planes(tiff: tifffile.TiffFile, series: Any) -> np.ndarray:
    """Numbers of the planes of each page, pages x channels; a plane is what one directory of the file describes."""
    dimensions = zip(series.get_axes(squeeze=False), series.get_shape(squeeze=False), strict=True)
    axes, lengths = list(zip(*((axis, length) for axis, length in dimensions if axis not in "YXS"), strict=True)) or ((), ())
    if math.prod(lengths) != len(series) and not series.is_truncated:
        # Channels within a plane, as in LSM.
        axes, lengths = ("I",), (len(series),)
    count = math.prod(lengths)
    there = tiff.filehandle.size // series.keyframe.nbytes if series.is_truncated else len(tiff.pages)
    if count > there:
        raise ValueError(f"{count} planes, of which {there} are there")
    planes = np.arange(count).reshape(lengths)
    if "C" not in axes:
        return planes.reshape(-1, 1)
    return np.moveaxis(planes, axes.index("C"), -1).reshape(-1, lengths[axes.index("C")])


def _read_plane(series: Any, plane: int) -> np.ndarray:
    """HxWxC array in the file's byte order."""
    keyframe = series.keyframe
    if plane and series.is_truncated:
        pixels = _read_undescribed(series, plane)
    else:
        page = series[plane]
        if page is None:
            raise ValueError(f"plane {plane} is not there")
        _check_segments(page)
        # One worker, so that what it logs is noted.
        pixels = page.asarray(maxworkers=1)
    if keyframe.axes == "YX":
        return pixels[:, :, None]
    if keyframe.axes == "SYX":
        return np.moveaxis(pixels, 0, -1)
    if keyframe.axes != "YXS":
        raise ValueError(f"pages with axes {keyframe.axes}")
    return pixels


def _read_plane_region(series: Any, plane: int, window: tuple[slice, slice]) -> np.ndarray:
    """As `_read_plane`, of a part."""
    keyframe = series.keyframe
    if keyframe.axes not in ("YX", "SYX", "YXS"):
        raise ValueError(f"pages with axes {keyframe.axes}")
    undescribed = bool(plane) and series.is_truncated
    page = keyframe if undescribed else series[plane]
    if page is None or (undescribed and not keyframe.is_final):
        raise ValueError(f"plane {plane} is not there")
    _check_segments(page)
    if not keyframe.is_final:
        return _decode_region(page, window)
    offset = page.dataoffsets[0] + undescribed * plane * keyframe.nbytes
    dtype = keyframe.dtype.newbyteorder(keyframe.parent.byteorder)
    pixels = keyframe.parent.filehandle.memmap_array(dtype, keyframe.shape, offset)
    pixels = np.moveaxis(pixels, 0, -1) if keyframe.axes == "SYX" else pixels.reshape(*pixels.shape[:2], -1)
    return np.array(pixels[window])


def _decode_region(page: Any, window: tuple[slice, slice]) -> np.ndarray:
    """HxWxC of the tiles or strips that the window touches."""
    keyframe, file = page.keyframe, page.parent.filehandle
    (top, bottom), (left, right) = ((side.start, side.stop) for side in window)
    height = keyframe.tilelength if keyframe.is_tiled else min(keyframe.rowsperstrip, keyframe.imagelength)
    width = keyframe.tilewidth if keyframe.is_tiled else keyframe.imagewidth
    rows, columns = -(-keyframe.imagelength // height), -(-keyframe.imagewidth // width)
    separate, _, _, _, contiguous = keyframe.shaped
    pixels = np.empty((separate, bottom - top, right - left, contiguous), keyframe.dtype)
    jpeg = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader} if keyframe.compression in _JPEG else {}
    touched = (range(separate), range(top // height, -(-bottom // height)), range(left // width, -(-right // width)))
    for sample, row, column in itertools.product(*touched):
        index = (sample * rows + row) * columns + column
        # In this order: looking up its place and its decoder may read tags, which moves the file.
        offset, length, decode = page.dataoffsets[index], page.databytecounts[index], keyframe.decode
        file.seek(offset)
        (segment, *_) = decode(file.read(length), index, **jpeg)
        y, x = row * height, column * width
        upper, lower, first, last = max(y, top), min(y + height, bottom), max(x, left), min(x + width, right)
        part = segment[0, upper - y : lower - y, first - x : last - x]
        pixels[sample, upper - top : lower - top, first - left : last - left] = part
    return np.moveaxis(pixels[..., 0], 0, -1) if separate > 1 else pixels[0]


def _read_undescribed(series: Any, plane: int) -> np.ndarray:
    """A plane that merely follows the first; ImageJ writes stacks of more than 4 GB so."""
    keyframe = series.keyframe
    if series.dataoffset is None:
        raise ValueError(f"plane {plane} is not there")
    file = keyframe.parent.filehandle
    file.seek(series.dataoffset + plane * keyframe.nbytes)
    dtype = keyframe.dtype.newbyteorder(keyframe.parent.byteorder)
    return file.read_array(dtype, math.prod(keyframe.shape)).reshape(keyframe.shape)


def _check_segments(page: Any) -> None:
    """Where strips or tiles are missing, or end after the file, tifffile would go on with zeros."""
    size = page.parent.filehandle.size
    if page.keyframe.is_contiguous:
        whole = page.dataoffsets[0] + page.nbytes <= size
    else:
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        whole = len(segments) >= math.prod(page.chunked) and all(
            offset > 0 and length > 0 and offset + length <= size for offset, length in segments
        )
    if not whole:
        raise ValueError("a strip or tile is missing or truncated")


def _interpret(keyframe: Any, samples: np.ndarray) -> Raster:
    """Samples as they are meant to look: palette, MinIsWhite, orientation."""
    photometric, bits = keyframe.photometric, keyframe.bitspersample
    if photometric == PHOTOMETRIC.PALETTE:
        samples, bits = _look_up(samples[:, :, 0], _palette(keyframe)), 8
    elif photometric == PHOTOMETRIC.MINISWHITE:
        samples = _invert(samples, bits)
    elif photometric == PHOTOMETRIC.YCBCR and keyframe.compression not in _JPEG:
        raise ValueError("YCbCr without JPEG compression")
    elif photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR):
        name = getattr(photometric, "name", photometric)
        raise ValueError(f"photometric interpretation {name}; expected grey, RGB or a palette")
    return _upright(keyframe, samples, bits)


def _upright(keyframe: Any, samples: np.ndarray, bits: int) -> Raster:
    alpha = samples.shape[2] in (2, 4) and keyframe.extrasamples[-1:] in ((kind,) for kind in _ALPHA)
    return Raster(_turn(samples, keyframe.tags.valueof(_ORIENTATION)), bits, alpha)


def _palette(keyframe: Any) -> np.ndarray:
    colours = np.asarray(keyframe.colormap).T
    # Some writers store 8 bits where 16 belong; libtiff tells them so too.
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _invert(samples: np.ndarray, bits: int) -> np.ndarray:
    if samples.dtype.kind == "f":
        return -samples
    if samples.dtype.kind == "u":
        return samples.dtype.type(2**bits - 1) - samples
    return ~samples
