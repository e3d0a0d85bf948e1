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

    As the publisher recommends, an instance is a connected region of one value of the first channel; a nucleus in two
    pieces therefore counts as two. Regions are connected by sides, not corners, as they are one value's only.

    Args:
        images: folder of images, the stem of their mask.
        masks: folder of masks, PNG, grey or RGBA.
        names: a mask's file name a line.

    Raises:
        DatasetError: a file or folder is missing, a name is no file's of the folder, or a mask cannot be read or has
            another size than its image.
    """
    image_files, mask_files = by_stem(list_images(images)), by_stem(list_images(masks))
    try:
        lines = [line.strip() for line in names.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{names}: cannot be read ({error}); expected a mask's file name a line") from error
    stems = [Path(line).stem for line in lines if line]
    if not stems:
        raise DatasetError(f"{names}: empty; expected a mask's file name a line")
    for stem in stems:
        if stem not in image_files or stem not in mask_files:
            raise DatasetError(f"{names}: {stem}: not both an image of {images} and a mask of {masks}")

    def record(stem: str) -> dict[str, Any]:
        return _record(stem, image_files[stem], mask_files[stem])

    with ThreadPoolExecutor() as pool:
        return list(pool.map(record, stems))


def _record(stem: str, image: Path, mask: Path) -> dict[str, Any]:
    height, width = image_size(image)
    values = read_raster(mask, stored=True).samples[:, :, 0]
    check_shape(mask, values.shape, height, width)
    return {
        "file_name": str(image),
        "image_id": stem,
        "height": height,
        "width": width,
        "annotations": list(labels_to_annotations(label(values, background=0, connectivity=1))),
    }
