"""TIFF and OME-TIFF through tifffile, whose leniency with broken files is taken back here.

tifffile logs that a file is broken and goes on with what is left of it, fills what is missing with zeros, and opens other
files that the metadata name. Here a broken file raises, and no other file is opened. Functions raise whatever comes
up; `image_files` makes one kind of error of it.
"""

import logging
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from cupre_d2.data.raster import Raster, check_size, choose_page, look_up, swaps_sides, turn

# Classic and BigTIFF, of either byte order.
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ORIENTATION = 274
_ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
# Their decoders turn YCbCr into RGB.
_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY)

_errors: ContextVar[list[str] | None] = ContextVar("errors of the TIFF being read", default=None)


def read_tiff(path: Path, page: int | None, stored: bool) -> Raster:
    """One page of a file; see `image_files.read_raster` for what a page is, and `stored`."""
    with _open(path) as tiff:
        pages = _pages(tiff)
        series, planes = pages[choose_page(path, page, len(pages))]
        keyframe = series.keyframe
        if keyframe.dtype is None or keyframe.dtype.kind not in "buif":
            raise ValueError(f"samples of {keyframe.bitspersample} bits, format {keyframe.sampleformat}")
        for shape in ((*keyframe.shape, len(planes)), keyframe.chunks):
            check_size(shape, keyframe.dtype.itemsize)
        samples = np.concatenate([_read_plane(series, int(plane)) for plane in planes], axis=2)
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        return _upright(keyframe, samples, keyframe.bitspersample) if stored else _interpret(keyframe, samples)


def count_pages(path: Path) -> int:
    with _open(path) as tiff:
        return len(_pages(tiff))


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the first page, upright."""
    with _open(path) as tiff:
        pages: Any = tiff.pages
        page = next((page for page in pages if not page.is_reduced), pages.first)
        height, width = page.imagelength, page.imagewidth
        check_size((height, width), 0)
        return (width, height) if swaps_sides(page.tags.valueof(_ORIENTATION)) else (height, width)


def _note_error(record: logging.LogRecord) -> bool:
    errors = _errors.get()
    if errors is None or record.levelno < logging.ERROR:
        return True
    errors.append(record.getMessage())
    return False


logging.getLogger("tifffile").addFilter(_note_error)


@contextmanager
def _open(path: Path) -> Iterator[tifffile.TiffFile]:
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


def _pages(tiff: tifffile.TiffFile) -> list[tuple[Any, np.ndarray]]:
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
        samples, bits = look_up(samples[:, :, 0], _palette(keyframe)), 8
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
    return Raster(turn(samples, keyframe.tags.valueof(_ORIENTATION)), bits, alpha)


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
