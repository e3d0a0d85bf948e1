"""Images with no cell, or with far fewer than images alike."""

from collections import defaultdict

import numpy as np

from cupre_d2.data.check.contents import Contents, ImageEntry
from cupre_d2.data.check.findings import Collector

# What is few: less than this share of the median of images alike, if there are enough of them and the median is so large
# that chance does not explain it. LIVECell's images of one cell type differ by a factor of some ten as cells grow.
_SHARE, _MIN_IMAGES, _MIN_MEDIAN = 0.1, 5, 20


def check_counts(contents: Contents, collector: Collector) -> None:
    """Images alike are those of a cell type, or where these are too few, all of the source."""
    medians = _medians(contents.images)
    for index, image in enumerate(contents.images):
        if image.annotations is None or not image.entry:
            continue
        count = len(image.annotations)
        median = medians.get(image.group, medians.get(None, 0.0))
        if median >= _MIN_MEDIAN and count < _SHARE * median:
            message = f"{count} annotations, where images alike have {median:.0f}"
            collector.add("few cells", image.name, message, index, file=image.listed_in)
        elif not count:
            collector.add("no cell", image.name, "it has no annotation", index, file=image.listed_in)


def _medians(images: list[ImageEntry]) -> dict[str | None, float]:
    """Annotations an image, by group; None is the group of all."""
    counts: dict[str | None, list[int]] = defaultdict(list)
    for image in images:
        if image.annotations is not None and image.entry:
            counts[image.group].append(len(image.annotations))
            counts[None].append(len(image.annotations))
    return {group: float(np.median(some)) for group, some in counts.items() if len(some) >= _MIN_IMAGES}
