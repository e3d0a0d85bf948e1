"""The images of all splits: whether they can be read, which are the same, and which have few cells."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from tqdm import tqdm

from cupre_d2.data.curation.contents import Contents, ImageEntry
from cupre_d2.data.curation.findings import Collector
from cupre_d2.data.images import read_image, read_pixels
from cupre_d2.errors import DatasetError

Key = Hashable
# What is few: less than this share of the median of images alike, if there are enough of them and the median is so large
# that chance does not explain it. LIVECell's images of one cell type differ by a factor of some ten as cells grow.
_SHARE, _MIN_IMAGES, _MIN_MEDIAN = 0.1, 5, 20


@dataclass(frozen=True)
class Pixels:
    """What decoding an image told: its size and a digest of its pixels, or why it cannot be read."""

    size: tuple[int, int] | None = None
    digest: str | None = None
    problem: tuple[str, str] | None = None


def decode_all(contents: Sequence[Contents]) -> dict[Key, Pixels]:
    """Decodes each image of the splits once, in threads, and shows how far it is; by `file_key`."""
    images = {file_key(image): image for one in contents for image in one.images if image.file is not None}
    with ThreadPoolExecutor() as pool:
        decoded = tqdm(pool.map(_decode, images.values()), "decoding images", len(images), unit="image", disable=None)
        return dict(zip(images, decoded, strict=True))


def file_key(image: ImageEntry) -> Key:
    return str(image.file), image.page


def check_files(contents: Contents, pixels: dict[Key, Pixels], collector: Collector) -> None:
    """Missing and unreadable images, and those whose size is not what the split says."""
    for index, image in enumerate(contents.images):
        if not image.entry:
            continue
        found = pixels.get(file_key(image), Pixels())
        if found.problem:
            collector.add(found.problem[0], image.name, found.problem[1], index, file=image.listed_in)
        stated = tuple(image.entry.get(side) for side in ("height", "width"))
        # Folders of images state none; a COCO JSON must.
        if contents.split.json_file is None and stated == (None, None):
            continue
        if image.size is None or (found.size and found.size != image.size):
            expected = "{}, {} as in {}".format(*found.size, image.file) if found.size else "whole numbers above 0"
            message = f"fields height, width: {stated[0]!r}, {stated[1]!r}; expected {expected}"
            collector.add("size mismatch", image.name, message, index, file=image.listed_in)


def check_repeats(contents: Sequence[Contents], pixels: dict[Key, Pixels], collectors: Sequence[Collector]) -> None:
    """Images that occur twice in a split, or in several; told apart by their pixels, so copies in other formats count.

    Of those that occur twice in a split the one with most annotations is not reported.
    """
    shared: Counter[tuple[int, int]] = Counter()
    example: dict[tuple[int, int], str] = {}
    for by_split in _same(contents, pixels).values():
        for number, indices in by_split.items():
            if len(indices) > 1:
                _report_repeats(contents[number], indices, collectors[number])
        _report_leaks(contents, by_split, collectors)
        for pair in combinations(sorted(by_split), 2):
            one, other = (contents[number].split for number in pair)
            if one.role == other.role or not (one.held_out or other.held_out):
                shared[pair] += 1
                example.setdefault(pair, contents[pair[0]].images[by_split[pair[0]][0]].name)
    for pair, count in shared.items():
        record = example[pair] + (" and others" if count > 1 else "")
        collectors[pair[0]].add("shared images", record, f"{count} images are in {contents[pair[1]].split.name} too")


def check_counts(contents: Contents, collector: Collector) -> None:
    """Images alike are those of a cell type, or where these are too few, all of the split."""
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


def _decode(image: ImageEntry) -> Pixels:
    assert image.file is not None
    try:
        if not image.file.is_file():
            return Pixels(problem=("missing image", f"{image.file} is not on disk"))
    except (OSError, ValueError):
        return Pixels(problem=("missing image", "its name is none that a file can have"))
    try:
        pixels = read_pixels(image.file, image.page)
        if image.channels is not None or (pixels.ndim == 3 and pixels.shape[2] != 3):
            # Whether training can read it takes more than decoding.
            read_image(image.file, page=image.page, channels=image.channels, percentiles=None)
    except DatasetError as error:
        return Pixels(problem=("unreadable image", str(error)))
    return Pixels((pixels.shape[0], pixels.shape[1]), _digest(pixels))


def _digest(pixels: np.ndarray) -> str:
    """Equal for equal pictures, grey or grey as RGB, with or without a transparency that hides nothing."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and pixels.dtype.kind == "u":
        opaque = pixels[:, :, -1].min() == np.iinfo(pixels.dtype).max
        pixels = pixels[:, :, :-1] if opaque else pixels
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _same(contents: Sequence[Contents], pixels: dict[Key, Pixels]) -> dict[Key, dict[int, list[int]]]:
    """Positions of the images that are the same, by split; only of those that occur more than once."""
    groups: dict[Key, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, one in enumerate(contents):
        for index, image in enumerate(one.images):
            if image.file is not None:
                key = file_key(image)
                groups[pixels[key].digest or key][number].append(index)
    return {key: group for key, group in groups.items() if sum(map(len, group.values())) > 1}


def _report_repeats(contents: Contents, indices: list[int], collector: Collector) -> None:
    images = contents.images
    kept = max(indices, key=lambda index: len(images[index].annotations or ()))
    for index in indices:
        if index != kept:
            kind = "repeated file" if file_key(images[index]) == file_key(images[kept]) else "repeated content"
            message = f"the same as {images[kept].name}"
            if images[kept].annotations is not None:
                here, there = (len(images[one].annotations or ()) for one in (index, kept))
                message += f"; {here} annotations here, {there} there"
            collector.add(kind, images[index].name, message, index, file=images[index].listed_in)


def _report_leaks(contents: Sequence[Contents], by_split: dict[int, list[int]], collectors: Sequence[Collector]) -> None:
    held_out = [number for number in by_split if contents[number].split.held_out]
    for number, indices in by_split.items():
        for other in [other for other in held_out if _leaks_into(contents[number], contents[other])][:1]:
            message = f"the same as {contents[other].images[by_split[other][0]].name} of {contents[other].split.name}"
            for index in indices:
                image = contents[number].images[index]
                collectors[number].add("leak", image.name, message, index, file=image.listed_in)


def _leaks_into(one: Contents, held_out: Contents) -> bool:
    """Whether an image of both is to be reported for `one`: of validation and test it is the validation's."""
    return not one.split.held_out or (one.split.role, held_out.split.role) == ("val", "test")


def _medians(images: list[ImageEntry]) -> dict[str | None, float]:
    """Annotations an image, by group; None is the group of all."""
    counts: dict[str | None, list[int]] = defaultdict(list)
    for image in images:
        if image.annotations is not None and image.entry:
            counts[image.group].append(len(image.annotations))
            counts[None].append(len(image.annotations))
    return {group: float(np.median(some)) for group, some in counts.items() if len(some) >= _MIN_IMAGES}
