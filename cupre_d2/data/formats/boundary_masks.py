"""BBBC039: masks whose touching nuclei differ in value or are kept apart by their boundary."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from skimage.measure import label

from cupre_d2.data.formats.image_folder import image_size, list_images
from cupre_d2.data.formats.label_images import by_stem
from cupre_d2.data.formats.masks import check_shape, labels_to_annotations
from cupre_d2.data.image_files import read_raster
from cupre_d2.errors import DatasetError


def load_boundary_masks(images: Path, masks: Path, names: Path) -> list[dict[str, Any]]:
    """Records of the images that a text file names by their masks, in its order.

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
    image_files = by_stem(list_images(images))
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
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_record, pairs.values(), pairs))


def _record(image: Path, mask: Path) -> dict[str, Any]:
    height, width = image_size(image)
    values = read_raster(mask, stored=True).samples[:, :, 0]
    check_shape(mask, values.shape, height, width)
    return {
        "file_name": str(image),
        "image_id": image.stem,
        "height": height,
        "width": width,
        "annotations": list(labels_to_annotations(label(values, background=0, connectivity=2))),
    }
