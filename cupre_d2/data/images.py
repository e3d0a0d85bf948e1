"""Images as models take them: 8 bits, three channels, whatever their files hold.

Detectron2's reader saturates 16-bit images to white, cuts deep colours off, and takes the first page of a stack,
without a word.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from detectron2.utils.logger import log_first_n
from PIL import Image

from cupre_d2.data.image_files import Raster, read_raster
from cupre_d2.errors import ConfigError, DatasetError

FORMATS = ("RGB", "BGR", "L")
PERCENTILES = (0.1, 99.9)

Percentiles = Sequence[float] | None


def read_pixels(path: str | os.PathLike[str], page: int | None = None) -> np.ndarray:
    """An image as its file has it: HxW, or HxWxC with every channel there is, in the file's own dtype.

    Upright, with MinIsWhite inverted and palettes looked up (as `read_raster` says), and nothing else done to it.

    Raises:
        DatasetError: see `image_files.read_raster`.
    """
    samples = read_raster(path, page).samples
    return samples[:, :, 0] if samples.shape[2] == 1 else samples


def read_record(record: dict[str, Any], format: str = "RGB", percentiles: Percentiles = PERCENTILES) -> np.ndarray:
    """`read_image` of a record; its fields "page", "channels" and "percentiles", where it has them, win.

    Raises:
        DatasetError, ConfigError: see `read_image`.
    """
    return read_image(
        record["file_name"],
        format,
        page=record.get("page"),
        channels=record.get("channels"),
        percentiles=record.get("percentiles", percentiles),
    )


def read_image(
    path: str | os.PathLike[str],
    format: str = "RGB",
    *,
    page: int | None = None,
    channels: Sequence[int] | None = None,
    percentiles: Percentiles = PERCENTILES,
) -> np.ndarray:
    """Reads any image for a model or for the eye; see `image_files.read_raster` for what can be read.

    Channels: of 1, grey is repeated to three; 3 are red, green and blue. A last one that the file says is alpha, or a
    fourth that is opaque everywhere, is left out: transparency is no measurement. Any other number needs a choice.

    Contrast: grey values between the two percentiles are stretched linearly over 0 to 255, those beyond are clipped.
    Colours are stretched together, which keeps their hue; three channels that were chosen, which are dyes rather than
    colours, each on its own. Colours of 8 bits and images of 1 bit are never stretched; grey that was saved as three equal
    channels is grey. A percentile is the smallest
    grey value that this share of the pixels does not exceed; where the two are the same value, minimum and maximum are
    taken instead. Not stretched, or of one grey value only, whole numbers are scaled linearly from the full range of
    their type, floats from their own minimum and maximum (to 0 if they are the same).

    Floats that are not finite are left out of the percentiles, and logged; NaN becomes black.

    Args:
        path: the image.
        format: order of the channels, as INPUT.FORMAT: "RGB", "BGR", or "L" for grey.
        page: of a stack, from 0.
        channels: one, taken as grey, or three, taken as red, green and blue; from 0, alpha counted.
        percentiles: the lower and the upper, from 0 to 100; None or () for no stretching.

    Returns:
        HxWx3 uint8 array of its own memory.

    Raises:
        DatasetError: the file cannot be read, page or channels are missing or do not exist, percentiles are none, or no
            value is finite.
        ConfigError: another format.
    """
    if format not in FORMATS:
        raise ConfigError(f"INPUT.FORMAT {format!r}: expected one of {', '.join(FORMATS)}")
    if not _are_percentiles(percentiles):
        raise DatasetError(f"{path}: field percentiles {percentiles!r}: expected None or 0 <= lower < upper <= 100")
    raster = read_raster(path, page)
    samples = choose_channels(raster, channels, path)
    dyes = channels is not None and len(channels) == 3
    colours = _count_colours(raster) == 3
    return Contrast.of(samples, raster.bits, percentiles, path, dyes=dyes, colours=colours)(samples, format)


@dataclass(frozen=True)
class Contrast:
    """How the grey values of an image become 8 bits, as `read_image` says: measured on all of it, and good for its parts.

    Attributes:
        limits: the grey values that become 0 and 255, of all channels together or of each.
    """

    limits: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(
        cls,
        samples: np.ndarray,
        bits: int,
        percentiles: Percentiles,
        path: str | os.PathLike[str],
        *,
        dyes: bool = False,
        colours: bool = True,
    ) -> "Contrast":
        """
        Args:
            samples: HxWx1 or HxWx3.
            bits: of a sample that count.
            path: of the image, for errors.
            dyes: three channels are each stretched on its own.
            colours: three channels are all that the file has, and so red, green and blue.

        Raises:
            DatasetError: no value is finite.
        """
        if samples.dtype.itemsize == 1 and samples.shape[2] == 3 and colours and not _is_grey(samples):
            percentiles = None
        parts = np.split(samples, 3, axis=2) if dyes else [samples]
        return cls(tuple(_find_limits(part, bits, percentiles, path) for part in parts))

    def __call__(self, samples: np.ndarray, format: str) -> np.ndarray:
        """Of an image HxWx1 or HxWx3, or of a part of it, HxWx3 uint8 of its own memory in the order `format`."""
        parts = np.split(samples, len(self.limits), axis=2)
        return _arrange([_stretch(part, *limits) for part, limits in zip(parts, self.limits, strict=True)], format)


def check_percentiles(percentiles: Sequence[float]) -> None:
    """
    Raises:
        ConfigError: they are no INPUT.PERCENTILES.
    """
    if not _are_percentiles(percentiles):
        raise ConfigError(f"INPUT.PERCENTILES {percentiles}: expected () or 0 <= lower < upper <= 100")


def _are_percentiles(percentiles: Any) -> bool:
    if percentiles is None:
        return True
    if not isinstance(percentiles, Sequence) or not all(isinstance(one, int | float) for one in percentiles):
        return False
    return not percentiles or (len(percentiles) == 2 and 0 <= percentiles[0] < percentiles[1] <= 100)


def choose_channels(raster: Raster, channels: Sequence[int] | None, path: str | os.PathLike[str]) -> np.ndarray:
    """HxWx1 or HxWx3 of the samples, as `read_image` says.

    Raises:
        DatasetError: the channels do not exist, or a choice is needed.
    """
    there = raster.samples.shape[2]
    if channels is not None:
        if len(channels) not in (1, 3) or not all(isinstance(one, int) and 0 <= one < there for one in channels):
            raise DatasetError(f"{path}: field channels {channels!r}: expected one or three, each from 0 to {there - 1}")
        return np.take(raster.samples, channels, axis=2)
    colours = _count_colours(raster)
    if colours not in (1, 3):
        raise DatasetError(
            f"{path}: {there} channels; expected grey, RGB or RGB with alpha, or one or three to be chosen "
            "(of a data set by the field channels, in predict by --channels)"
        )
    return raster.samples if colours == there else np.take(raster.samples, range(colours), axis=2)


def _count_colours(raster: Raster) -> int:
    """Channels but for alpha."""
    samples = raster.samples
    count = samples.shape[2] - raster.alpha
    opaque = count == 4 and samples.dtype.kind == "u" and samples[:, :, 3].min() == 2**raster.bits - 1
    return 3 if opaque else count


def _is_grey(samples: np.ndarray) -> bool:
    """Whether three channels hold the same everywhere, as where a grey image was saved as a colour one."""
    # Some rows first: of a colour image they mostly decide it.
    return all(np.array_equal(part[..., 0], part[..., n]) for part in (samples[::64], samples) for n in (1, 2))


def _find_limits(samples: np.ndarray, bits: int, percentiles: Percentiles, path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """The grey values of HxWxC of anything that become 0 and 255, all channels taken together."""
    dtype = samples.dtype
    if dtype.kind == "b":
        return False, True
    if dtype.kind == "f":
        return _find_float_limits(samples, percentiles, path)
    whole = (0, 2**bits - 1) if dtype.kind == "u" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not percentiles:
        return whole
    if dtype.itemsize <= 2:
        return _limits(_counted_percentile(samples), percentiles, whole)
    return _limits(lambda share: np.percentile(samples, share, method="inverted_cdf"), percentiles, whole)


def _find_float_limits(samples: np.ndarray, percentiles: Percentiles, path: str | os.PathLike[str]) -> tuple[Any, Any]:
    finite = samples[np.isfinite(samples)]
    if finite.size == 0:
        raise DatasetError(f"{path}: no value is finite; expected numbers")
    if finite.size < samples.size:
        message = f"{path}: {samples.size - finite.size} of {samples.size} values are not finite; NaN becomes black"
        log_first_n(logging.WARNING, message, key="message", name=__name__)
    whole = (finite.min(), finite.max())
    return _limits(lambda share: np.percentile(finite, share, method="inverted_cdf"), percentiles, whole)


def _grey_values(dtype: np.dtype) -> tuple[np.ndarray, int]:
    """All of a type of 8 or 16 bits; and how far they are turned from the order of the same bits as unsigned numbers."""
    info = np.iinfo(dtype)
    return np.arange(info.min, info.max + 1).astype(dtype), -int(info.min)


def _counted_percentile(samples: np.ndarray) -> Callable[[float], Any]:
    """For 8 and 16-bit numbers, where counting beats sorting."""
    grey_values, shift = _grey_values(samples.dtype)
    totals = np.cumsum(np.roll(_count(samples.view(f"u{samples.dtype.itemsize}"), len(grey_values)), shift))

    def percentile(share: float) -> int:
        rank = max(1, math.ceil(share / 100 * samples.size))
        return grey_values[np.searchsorted(totals, rank)]

    return percentile


def _stretch(samples: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """HxWxC uint8 of HxWxC of anything."""
    if samples.dtype.kind == "b":
        return samples * np.uint8(255)
    if samples.dtype == np.uint8 and (low, high) == (0, 255):
        return samples
    if samples.dtype.kind == "f" or samples.dtype.itemsize > 2:
        return _scale(samples, low, high)
    # A table of all grey values beats arithmetic.
    grey_values, shift = _grey_values(samples.dtype)
    table = np.roll(_scale(grey_values, low, high), -shift)
    keys = samples.view(f"u{samples.dtype.itemsize}")
    return cv2.LUT(keys, table).reshape(samples.shape) if len(table) == 256 else np.take(table, keys)


def _count(keys: np.ndarray, length: int) -> Any:
    if length > 256:
        return np.bincount(keys.ravel(), minlength=length)
    # Pillow is faster at it.
    return Image.fromarray(np.ascontiguousarray(keys).reshape(len(keys), -1)).histogram()


def _limits(percentile: Callable[[float], Any], percentiles: Percentiles, whole: tuple[Any, Any]) -> tuple[Any, Any]:
    """Grey values that become 0 and 255; `whole` where nothing is to be stretched."""
    for shares in (percentiles, (0, 100)) if percentiles else ():
        low, high = (percentile(share) for share in shares)
        if low < high:
            return low, high
    return whole


def _scale(samples: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """uint8 of what is linear between low and high; exact, and safe from overflow, for every type."""
    low, high = samples.dtype.type(low), samples.dtype.type(high)
    clipped = np.clip(samples, low, high)
    if samples.dtype.kind == "f":
        half = np.result_type(samples, np.float32).type(0.5)
        # What is no number is black: NaN, and all of an image of one value.
        with np.errstate(all="ignore"):
            share = np.nan_to_num((clipped * half - low * half) / (high * half - low * half))
    else:
        unsigned = f"u{samples.dtype.itemsize}"
        share = (clipped.view(unsigned) - low.view(unsigned)) / (int(high) - int(low))
    return np.rint(share * 255).astype(np.uint8)


def _arrange(parts: Sequence[np.ndarray], format: str) -> np.ndarray:
    """HxWx3 in the order `format`, of one or three channels."""
    pixels = np.ascontiguousarray(np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0])
    if pixels.shape[2] == 3 and format == "L":
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if format == "BGR" else np.require(pixels, requirements=("C", "W"))
