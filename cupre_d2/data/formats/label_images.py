"""A folder of images and a folder of label images: 0 is background, every other value one cell."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cupre_d2.data.formats.image_folder import TIFF_SUFFIXES, image_size, list_images
from cupre_d2.data.formats.masks import check_shape, labels_to_annotations, read_labels
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = (".png", *TIFF_SUFFIXES)


def load_label_images(images: Path, labels: Path) -> list[dict[str, Any]]:
    """Records of the images that have a label image of the same stem (`a.jpg` and `a.ome.tif`), sorted by file name.

    image_id is the stem. Every value but 0 becomes one instance of category 0, its mask an RLE.

    An image without a label image, or the reverse, is left out, counted and logged, not an error: annotating only
    some of a folder is common. It is not taken as an image without cells; that is a label image of zeros.

    Raises:
        DatasetError: a folder is missing or holds no image, two files share a stem, no image has a label image,
            a label image cannot be read, is no 8, 16 or 32-bit grey image, or has another size than its image.
    """
    image_files = by_stem(list_images(images))
    label_files = by_stem(list_images(labels, LABEL_SUFFIXES))
    stems = [stem for stem in image_files if stem in label_files]
    if not stems:
        raise DatasetError(
            f"{labels}: no label image fits an image of {images}; expected the same stem, ending in "
            + ", ".join(LABEL_SUFFIXES)
        )
    log_unpaired(set(image_files) - set(label_files), images, "images without a label image")
    log_unpaired(set(label_files) - set(image_files), labels, "label images without an image")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda stem: _record(stem, image_files[stem], label_files[stem]), stems))


def _record(stem: str, image_file: Path, label_file: Path) -> dict[str, Any]:
    height, width = image_size(image_file)
    labels = read_labels(label_file)
    check_shape(label_file, labels.shape, height, width)
    return {
        "file_name": str(image_file),
        "image_id": stem,
        "height": height,
        "width": width,
        "annotations": list(labels_to_annotations(labels)),
    }


def by_stem(files: list[Path]) -> dict[str, Path]:
    """
    Raises:
        DatasetError: two files share a stem.
    """
    found: dict[str, Path] = {}
    for file in files:
        # OME's files end in .ome.tif.
        stem = re.sub(r"\.ome$", "", file.stem, flags=re.IGNORECASE)
        other = found.setdefault(stem, file)
        if other != file:
            raise DatasetError(f"{file}: {other.name} has the same stem; expected one file a stem")
    return found


def log_unpaired(stems: set[str], folder: Path, what: str) -> None:
    """Says how many files of a folder are left out, if any."""
    if stems:
        logger.warning("%s: left out %d %s, the first %s", folder, len(stems), what, min(stems))
