"""Reading images of 8 bits a channel."""

import os
import struct
import zlib

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from cupre_d2.errors import ConfigError, DatasetError

FORMATS = ("RGB", "BGR", "L")

# What Pillow's decoders raise for broken files, besides OSError for truncated ones.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: str | os.PathLike[str], format: str = "RGB") -> np.ndarray:
    """Reads an image, turned as its EXIF orientation says. Grey is repeated to three channels, alpha is dropped.

    Detectron2's reader saturates 16-bit images to white without a word; they are refused here.

    Args:
        path: an image file that Pillow reads, 8 bits a channel or fewer.
        format: order of the channels, as INPUT.FORMAT: "RGB", "BGR", or "L" for grey.

    Returns:
        HxWx3 uint8 array of its own memory.

    Raises:
        DatasetError: the file is missing, truncated or no image, or has more than 8 bits a channel.
        ConfigError: another format.
    """
    if format not in FORMATS:
        raise ConfigError(f"INPUT.FORMAT {format!r}: expected one of {', '.join(FORMATS)}")
    try:
        with Image.open(path) as image:
            if _is_deep(image):
                raise DatasetError(f"{path}: image of mode {image.mode} is not 8-bit; expected 8 bits a channel")
            image.load()
            pixels = convert_PIL_to_numpy(_apply_exif_orientation(image), format)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such image") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path}: cannot be read as an image ({reason})") from error
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C")


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits."""
    if image.mode.startswith(("I", "F")):
        return True
    # Of a colour channel Pillow cuts off the lower 8 of 16 bits; only the decoder's raw mode tells.
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    raw_modes = [argument[0] if isinstance(argument, tuple) else argument for argument in arguments]
    return any(isinstance(mode, str) and mode.endswith((";16B", ";16L", ";16N")) for mode in raw_modes)
