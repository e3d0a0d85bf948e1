"""What a decoded image file holds, before anything is made of it for a model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupre_d2.errors import DatasetError

# Bytes of one decoded image; Pillow's own measure of a decompression bomb, a quarter gigabyte.
MAX_BYTES = 2**28


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


def check_size(shape: tuple[int, ...], item_bytes: int) -> None:
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


def choose_page(path: Path, page: int | None, count: int) -> int:
    """The page asked for, of `count`.

    Raises:
        DatasetError: there is no such page, or there are several and none was asked for.
    """
    if page is None and count > 1:
        raise DatasetError(f"{path}: a stack of {count} pages; expected the field page, from 0 to {count - 1}")
    if not isinstance(page or 0, int) or not 0 <= (page or 0) < count:
        raise DatasetError(f"{path}: field page {page!r}: expected a page from 0 to {count - 1}")
    return page or 0


def turn(samples: np.ndarray, orientation: object) -> np.ndarray:
    """View of an HxWxC array, upright; `orientation` is EXIF's or TIFF's tag, 1 to 8, anything else being 1."""
    if swaps_sides(orientation):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def swaps_sides(orientation: object) -> bool:
    """Whether height and width change places in `turn`."""
    return orientation in (5, 6, 7, 8)


def look_up(indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours HxWx3 of indices HxW into a palette Nx3, or grey values HxWx1 if the palette holds but greys.

    Raises:
        IndexError: an index has no colour.
    """
    if (palette == palette[:, :1]).all():
        palette = palette[:, :1]
    return palette[indices]
