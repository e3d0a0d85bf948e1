"""A word where Detectron2's own reader meets what it cannot show.

`detectron2.data.detection_utils.read_image`, with which its DatasetMapper reads, makes 16-bit images black or white and cuts
deep colours off without a word: a good model then finds nothing (AP 0.0 for 43.9). It is wrapped and not replaced, as other
projects in the same program may count on what it reads; nothing of this plugin calls it.
"""

import functools
import logging
from contextlib import suppress
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

logger = logging.getLogger(__name__)


def warn_of_deep_images() -> None:
    """Has Detectron2's `read_image` say once that an image has more than 8 bits; what it reads is the same."""
    read = detection_utils.read_image

    @functools.wraps(read)
    def warning_once(file_name: str, format: str | None = None) -> np.ndarray:
        if detection_utils.read_image is warning_once:
            # What cannot be opened is the reader's to report.
            with suppress(OSError), PathManager.open(file_name, "rb") as file, Image.open(file) as image:
                if _is_deep(image):
                    # Files need not be opened twice any longer.
                    detection_utils.read_image = read
                    logger.warning(
                        f"{file_name}: has more than 8 bits; Detectron2's reader makes such images black or white. Use "
                        "cupre_d2.data.mappers.DetectionMapper, or cupre_d2.data.images.read_image. Said once"
                    )
        return read(file_name, format)

    detection_utils.read_image = warning_once


def _is_deep(image: Any) -> bool:
    # Whole numbers and floats of 32 bits have modes of their own, 16-bit colours only a way to be decoded.
    return image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile)
