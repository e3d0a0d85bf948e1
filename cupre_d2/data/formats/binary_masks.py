"""Images with one mask of all foreground each: BBBC005, TNBC, ssTEM and EM, as one instance or split into its parts."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cupre_d2.data.formats.image_folder import image_size, list_images
from cupre_d2.data.formats.label_images import LABEL_SUFFIXES, by_stem, log_unpaired
from cupre_d2.data.formats.masks import check_shape, components, labels_to_annotations, read_mask
from cupre_d2.data.image_files import page_count
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

Instances = Literal["one", "components"]


def load_binary_masks(
    images: Path, masks: Path, instances: Instances = "one", inverted: bool = False
) -> list[dict[str, Any]]:
    """Records of the images that have a mask of the same stem, sorted by file name.

    image_id is the folder's name and the stem, so that several folders make one data set. An image without a mask, or
    the reverse, is left out, counted and logged.

    Args:
        images: a folder of images.
        masks: a folder of masks, PNG or TIFF, as JPEG has no exact 0; foreground is what is not 0.
        instances: "one" makes all foreground one instance, "components" each of its connected parts (also where they
            touch at a corner only). Cells that touch then become one: a mask alone cannot tell them apart.
        inverted: foreground is 0 instead, as in ssTEM's folder "labels".

    Raises:
        DatasetError: a folder is missing or holds no image, two files share a stem, no image has a mask, or a mask
            cannot be read or has another size than its image.
    """
    image_files, mask_files = by_stem(list_images(images)), by_stem(list_images(masks, LABEL_SUFFIXES))
    stems = [stem for stem in image_files if stem in mask_files]
    if not stems:
        raise DatasetError(f"{masks}: no mask fits an image of {images}; expected the same stem")
    log_unpaired(set(image_files) - set(mask_files), images, "images without a mask")
    log_unpaired(set(mask_files) - set(image_files), masks, "masks without an image")

    def record(stem: str) -> dict[str, Any]:
        image, mask = image_files[stem], mask_files[stem]
        height, width = image_size(image)
        foreground = read_mask(mask) != inverted
        check_shape(mask, foreground.shape, height, width)
        return _record(image, f"{images.name}/{stem}", foreground, instances)

    return _in_threads(record, stems)


def load_binary_stack(image: Path, mask: Path, instances: Instances = "one") -> list[dict[str, Any]]:
    """Records of the pages of a stack whose masks are the pages of another, as EPFL's hippocampus comes.

    Args:
        image, mask: files of as many pages; each record has its "page". image_id is the image's stem and the page.
        instances: see `load_binary_masks`.

    Raises:
        DatasetError: a file cannot be read, or they differ in number or size of pages.
    """
    pages, masks = page_count(image), page_count(mask)
    if pages != masks:
        raise DatasetError(f"{mask}: {masks} pages; expected as many as {image} has, {pages}")
    height, width = image_size(image)

    def record(page: int) -> dict[str, Any]:
        foreground = read_mask(mask, page)
        check_shape(mask, foreground.shape, height, width)
        return _record(image.absolute(), f"{image.stem}/{page:04d}", foreground, instances) | {"page": page}

    return _in_threads(record, range(pages))


def _in_threads(record: Callable[[Any], dict[str, Any]], keys: Any) -> list[dict[str, Any]]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(record, keys))


def _record(image: Path, image_id: str, foreground: np.ndarray, instances: Instances) -> dict[str, Any]:
    labels = components(foreground) if instances == "components" else foreground
    return {
        "file_name": str(image),
        "image_id": image_id,
        "height": foreground.shape[0],
        "width": foreground.shape[1],
        "annotations": list(labels_to_annotations(labels)),
    }
