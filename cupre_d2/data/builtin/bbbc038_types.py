"""Types of BBBC038's images by their looks: a stand-in for the list of the deep-clustering paper.

The paper sorted stage1_train and stage1_test by hand into seven types of 592, 8, 7, 8, 66, 16 and 38 images and never
published the list. Five of them can be told by colour alone; its two other types are fluorescence here.
bbbc038_types.csv holds what `python -m cupre_d2.data.builtin.bbbc038_types > bbbc038_types.csv` wrote for the images of
a nearly whole copy; a types.csv of your own beside stage1_train (image_id,type) goes before it.
"""

import numpy as np

from cupre_d2.data.catalog import datasets_root
from cupre_d2.data.formats.mask_images import list_ids, load_images
from cupre_d2.data.images import read_image

# Grey values, of 255.
_COLOURED, _BRIGHT, _STAINED_GROUND = 3, 128, 25


def appearance(image: np.ndarray) -> str:
    """fluorescence, bright_field, purple_on_white, purple_on_purple or pink_tissue, of an HxWx3 uint8 RGB image."""
    pixels = image.reshape(-1, 3).astype(float)
    if np.mean(np.ptp(pixels, axis=1)) < _COLOURED:
        return "bright_field" if np.median(pixels) >= _BRIGHT else "fluorescence"
    lightness = pixels.mean(axis=1)
    red, _, blue = ground = np.median(pixels[lightness >= np.percentile(lightness, 80)], axis=0)
    if np.ptp(ground) < _STAINED_GROUND:
        return "purple_on_white"
    return "pink_tissue" if red > blue else "purple_on_purple"


def main() -> None:
    folder = datasets_root() / "bbbc038/stage1_train"
    print("image_id,type")
    for record in load_images(folder, list_ids(folder)):
        print(record["image_id"], appearance(read_image(record["file_name"])), sep=",")


if __name__ == "__main__":
    main()
