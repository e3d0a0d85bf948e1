"""A folder of images and a folder of label images: 0 is background, every other value one cell."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.formats.image_folder import TIFF_SUFFIXES, image_size, list_images
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = (".png", *TIFF_SUFFIXES)


def load_label_images(images: Path, labels: Path) -> list[dict[str, Any]]:
    """Records of the images that have a label image of the same stem (`a.jpg` and `a.tif`), sorted by file name.

    image_id is the stem. Every value but 0 becomes one instance of category 0, its mask an RLE.

    An image without a label image, or the reverse, is left out, counted and logged, not an error: annotating only
    some of a folder is common. It is not taken as an image without cells; that is a label image of zeros.

    Raises:
        DatasetError: a folder is missing or holds no image, two files share a stem, no image has a label image,
            a label image cannot be read, is no 8, 16 or 32-bit grey image, or has another size than its image.
    """
    image_files = _by_stem(list_images(images))
    label_files = _by_stem(list_images(labels, LABEL_SUFFIXES))
    stems = [stem for stem in image_files if stem in label_files]
    if not stems:
        raise DatasetError(
            f"{labels}: no label image fits an image of {images}; expected the same stem, ending in "
            + ", ".join(LABEL_SUFFIXES)
        )
    _log_unpaired(set(image_files) - set(label_files), images, "images without a label image")
    _log_unpaired(set(label_files) - set(image_files), labels, "label images without an image")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda stem: _record(stem, image_files[stem], label_files[stem]), stems))


def read_label_image(file: Path) -> np.ndarray:
    """Label image as an HxW array of integers, background 0.

    Raises:
        DatasetError: it cannot be read, or is not one channel of whole numbers from 0 on.
    """
    try:
        if file.suffix.lower() in TIFF_SUFFIXES:
            labels = tifffile.imread(file)
        else:
            # Pillow keeps the indices of a palette PNG; OpenCV would turn them into colours.
            with Image.open(file) as image:
                labels = np.asarray(image)
    except (OSError, ValueError, IndexError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{file}: cannot be read as a label image ({reason})") from error
    if labels.ndim != 2 or labels.dtype.kind not in "bui" or (labels.size and labels.min() < 0):
        raise DatasetError(
            f"{file}: label image of shape {labels.shape} and type {labels.dtype}; "
            "expected one channel of 8, 16 or 32-bit whole numbers, 0 for background"
        )
    return labels


def mask_to_annotation(mask: np.ndarray) -> dict[str, Any] | None:
    """Annotation (RLE with str counts, XYWH box in pixels, category 0) of an HxW bool mask; None if it is empty."""
    if not mask.any():
        return None
    rle = mask_util.encode(np.asfortranarray(mask).view(np.uint8))
    return {
        "bbox": mask_util.toBbox(rle).tolist(),
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
        "category_id": 0,
        "iscrowd": 0,
    }


def _record(stem: str, image_file: Path, label_file: Path) -> dict[str, Any]:
    height, width = image_size(image_file)
    labels = read_label_image(label_file)
    if labels.shape != (height, width):
        raise DatasetError(
            f"{label_file}: label image of {labels.shape[1]}x{labels.shape[0]} pixels; "
            f"expected the size of its image {image_file}, {width}x{height}"
        )
    return {
        "file_name": str(image_file),
        "image_id": stem,
        "height": height,
        "width": width,
        "annotations": list(_annotations(labels)),
    }


def _annotations(labels: np.ndarray) -> Iterator[dict[str, Any]]:
    for value in np.unique(labels):
        annotation = mask_to_annotation(labels == value) if value else None
        if annotation:
            yield annotation


def _by_stem(files: list[Path]) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other != file:
            raise DatasetError(f"{file}: {other.name} has the same stem; expected one file a stem")
    return by_stem


def _log_unpaired(stems: set[str], folder: Path, what: str) -> None:
    if stems:
        logger.warning("%s: left out %d %s, the first %s", folder, len(stems), what, min(stems))
