"""Images whose instances are drawn in other images: label images, masks of all foreground, one mask a nucleus."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from skimage.measure import label

from cupre_d2.data.formats.image_folder import TIFF_SUFFIXES, image_record, in_threads, list_images
from cupre_d2.data.formats.rle import labels_to_annotations, mask_to_annotation
from cupre_d2.data.image_files import page_count, read_raster
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = (".png", *TIFF_SUFFIXES)
Instances = Literal["one", "components"]


def load_label_images(images: Path, labels: Path) -> list[dict[str, Any]]:
    """Records of the images that have a label image of the same stem (`a.jpg` and `a.ome.tif`), sorted by file name.

    image_id is the stem. Every value but 0 becomes one instance of category 0, its mask an RLE.

    An image without a label image, or the reverse, is left out, counted and logged, not an error: annotating only
    some of a folder is common. It is not taken as an image without cells; that is a label image of zeros.

    Raises:
        DatasetError: a folder is missing or holds no image, two files share a stem, no image has a label image,
            a label image cannot be read, is no 8, 16 or 32-bit grey image, or has another size than its image.
    """

    def record(stem: str, image: Path, label_image: Path) -> dict[str, Any]:
        return masked_record(image, stem, label_image, read_labels(label_image))

    return in_threads(record, *pair_by_stem(images, labels, "label image", LABEL_SUFFIXES))


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

    def record(stem: str, image: Path, mask: Path) -> dict[str, Any]:
        return _record(image, f"{images.name}/{stem}", mask, read_mask(mask) != inverted, instances)

    return in_threads(record, *pair_by_stem(images, masks, "mask", LABEL_SUFFIXES))


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

    def record(page: int) -> dict[str, Any]:
        foreground = read_mask(mask, page)
        return _record(image.absolute(), f"{image.stem}/{page:04d}", mask, foreground, instances) | {"page": page}

    return in_threads(record, range(pages))


def load_boundary_masks(images: Path, masks: Path, names: Path) -> list[dict[str, Any]]:
    """BBBC039: records of the images that a text file names by their masks, in its order.

    As the publisher's own code reads them, an instance is a connected region of one value of the first channel, pixels
    that touch at a corner being connected; a nucleus in two pieces therefore counts as two. image_id is the stem.

    Args:
        images: folder of images, the stem of their mask.
        masks: folder of masks, PNG, grey or RGBA; those of other images are no matter.
        names: a mask's file name a line.

    Raises:
        DatasetError: a file or folder is missing, a name is no file's of the folder or comes twice, or a mask cannot be
            read or has another size than its image.
    """
    image_files = _by_stem(list_images(images))
    mask_files = {file.name: file for file in list_images(masks, (".png",))}
    try:
        lines = [line.strip() for line in names.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{names}: cannot be read ({error}); expected a mask's file name a line") from error
    pairs: dict[Path, Path] = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            continue
        mask = mask_files.get(name)
        if mask is None or mask.stem not in image_files:
            raise DatasetError(f"{names}: line {number}: {name!r}; expected a mask of {masks} with an image in {images}")
        if mask in pairs:
            raise DatasetError(f"{names}: line {number}: {name!r} for the second time; expected one line an image")
        pairs[mask] = image_files[mask.stem]
    if not pairs:
        raise DatasetError(f"{names}: empty; expected a mask's file name a line")

    def record(mask: Path) -> dict[str, Any]:
        values = read_raster(mask, stored=True).samples[:, :, 0]
        return masked_record(pairs[mask], pairs[mask].stem, mask, label(values, background=0, connectivity=2))

    return in_threads(record, pairs)


def list_ids(folder: Path) -> list[str]:
    """Image ids of a folder as BBBC038 is published: `<id>/images/<id>.png` and `<id>/masks/*.png`, one PNG a nucleus.

    They are the names of the sub-folders, sorted; sub-folders without images are counted and logged.

    Raises:
        DatasetError: the folder is missing or has no sub-folder with images.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected one sub-folder an image, <id>/images and <id>/masks")
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    ids = sorted(entry.name for entry in folders if (entry / "images").is_dir())
    if not ids:
        raise DatasetError(f"{folder}: no image; expected one sub-folder an image, <id>/images and <id>/masks")
    if len(ids) < len(folders):
        logger.warning("%s: left out %d sub-folders that have no folder images", folder, len(folders) - len(ids))
    return ids


def load_images(folder: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Records without annotations, which spares reading the masks; otherwise as `load_mask_files`."""
    return in_threads(lambda image_id: _image(folder, image_id), ids)


def load_mask_files(folder: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Records of the images `ids`, in that order; every mask file is one instance of category 0, its mask an RLE.

    Any pixel above 0 belongs to the nucleus. Empty masks and files that are no PNG are left out, counted and logged.

    Raises:
        DatasetError: an image or its folder of masks is missing or cannot be read, or a mask has another size.
    """
    found = in_threads(lambda image_id: _annotated_image(folder, image_id), ids)
    files: Counter[str] = sum((counts for _, counts in found), Counter())
    for what in ("empty", "no PNG"):
        if files[what]:
            logger.warning("%s: left out %d of %d mask files, which are %s", folder, files[what], files["all"], what)
    return [record for record, _ in found]


def read_mask(file: Path, page: int | None = None) -> np.ndarray:
    """HxW bool: True where any channel but transparency is not 0; errors as of `image_files.read_raster`."""
    raster = read_raster(file, page, stored=True)
    return (raster.samples[:, :, :-1] if raster.alpha else raster.samples).any(axis=2)


def read_labels(file: Path) -> np.ndarray:
    """HxW array of whole numbers as they are stored, 0 for background; palettes keep their indices.

    Raises:
        DatasetError: it cannot be read, or is not one channel of whole numbers from 0 on.
    """
    samples = read_raster(file, stored=True).samples
    if samples.shape[2] != 1 or samples.dtype.kind not in "bui" or samples.min() < 0:
        raise DatasetError(
            f"{file}: label image of shape {samples.shape} and type {samples.dtype}; "
            "expected one channel of 8, 16 or 32-bit whole numbers, 0 for background"
        )
    return samples[:, :, 0]


def masked_record(image: Path, image_id: str, mask: Path, labels: np.ndarray) -> dict[str, Any]:
    """The record of an image whose instances are the values but 0 of an HxW array, read from the file `mask`.

    Raises:
        DatasetError: the image cannot be read or has another size.
    """
    record = image_record(image, image_id)
    check_shape(mask, labels.shape, record["height"], record["width"])
    return record | {"annotations": list(labels_to_annotations(labels))}


def check_shape(file: Path, shape: tuple[int, ...], height: int, width: int) -> None:
    """Raises DatasetError where a mask has another size than its image."""
    if shape != (height, width):
        raise DatasetError(f"{file}: of {shape[1]}x{shape[0]} pixels; expected the size of its image, {width}x{height}")


def _record(image: Path, image_id: str, mask: Path, foreground: np.ndarray, instances: Instances) -> dict[str, Any]:
    labels = label(foreground, connectivity=2) if instances == "components" else foreground
    return masked_record(image, image_id, mask, labels)


def _image(folder: Path, image_id: str) -> dict[str, Any]:
    return image_record((folder / image_id / "images" / f"{image_id}.png").absolute(), image_id)


def _annotated_image(folder: Path, image_id: str) -> tuple[dict[str, Any], Counter[str]]:
    """A record, and how many files its masks are, and of those left out."""
    record = _image(folder, image_id)
    masks = folder / image_id / "masks"
    if not masks.is_dir():
        raise DatasetError(f"{masks}: no such folder; expected one PNG a nucleus")
    files = sorted(entry for entry in masks.iterdir() if not entry.name.startswith("."))
    annotations = []
    for file in files:
        if file.suffix.lower() == ".png":
            mask = read_mask(file)
            check_shape(file, mask.shape, record["height"], record["width"])
            annotations.append(mask_to_annotation(mask))
    record["annotations"] = [annotation for annotation in annotations if annotation]
    empty = len(annotations) - len(record["annotations"])
    return record, Counter({"all": len(files), "no PNG": len(files) - len(annotations), "empty": empty})


def pair_by_stem(
    images: Path, folder: Path, what: str, suffixes: tuple[str, ...]
) -> tuple[list[str], list[Path], list[Path]]:
    """Stems, images and files of those that a folder of images and another have both, sorted by the images' names.

    An image without such a file, or the reverse, is left out, counted and logged.

    Args:
        folder: of the files; or one of them.
        what: one of them is called.
        suffixes: they end in.

    Raises:
        DatasetError: a folder is missing or empty, two files share a stem, or no image has a file.
    """
    image_files = _by_stem(list_images(images))
    files = _by_stem([folder] if folder.is_file() else list_images(folder, suffixes))
    stems = [stem for stem in image_files if stem in files]
    if not stems:
        ends = ", ".join(suffixes)
        raise DatasetError(f"{folder}: no {what} fits an image of {images}; expected the same stem, ending in {ends}")
    for place, theirs, others in (
        (images, image_files, f"images without a {what}"),
        (folder, files, f"{what}s without an image"),
    ):
        if left := theirs.keys() - set(stems):
            logger.warning("%s: left out %d %s, the first %s", place, len(left), others, min(left))
    return stems, [image_files[stem] for stem in stems], [files[stem] for stem in stems]


def _by_stem(files: list[Path]) -> dict[str, Path]:
    """Raises DatasetError where two files share a stem."""
    found: dict[str, Path] = {}
    for file in files:
        # OME's files end in .ome.tif.
        stem = re.sub(r"\.ome$", "", file.stem, flags=re.IGNORECASE)
        other = found.setdefault(stem, file)
        if other != file:
            raise DatasetError(f"{file}: {other.name} has the same stem; expected one file a stem")
    return found


def _pairs(images: Path, masks: Path, kind: str) -> dict[str, tuple[Path, Path]]:
    """Each image and its mask, by their stem; how many of a folder are left out, if any, is logged."""
    image_files, mask_files = _by_stem(list_images(images)), _by_stem(list_images(masks, LABEL_SUFFIXES))
    pairs = {stem: (file, mask_files[stem]) for stem, file in image_files.items() if stem in mask_files}
    if not pairs:
        expected = f"expected the same stem, ending in {', '.join(LABEL_SUFFIXES)}"
        raise DatasetError(f"{masks}: no {kind} fits an image of {images}; {expected}")
    for folder, files, what in (
        (images, image_files, f"images without a {kind}"),
        (masks, mask_files, f"{kind}s without an image"),
    ):
        if stems := files.keys() - pairs.keys():
            logger.warning("%s: left out %d %s, the first %s", folder, len(stems), what, min(stems))
    return pairs
