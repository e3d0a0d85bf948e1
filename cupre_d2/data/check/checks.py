"""All checks, in order."""

from collections.abc import Sequence
from itertools import chain

from tqdm import tqdm

from cupre_d2.data.check.contents import Contents, read_contents
from cupre_d2.data.check.counts import check_counts
from cupre_d2.data.check.findings import Collector, Finding
from cupre_d2.data.check.images import Key, Pixels, check_files, check_repeats, decode_all, file_key
from cupre_d2.data.check.instances import OVERLAP, check_image
from cupre_d2.data.check.sources import Source


def check_sources(sources: Sequence[Source], overlap: float = OVERLAP) -> list[Finding]:
    """Finds what is wrong with the splits of a data set, each on its own and with each other.

    Args:
        sources: the splits.
        overlap: the share of an instance, 0 to 1, that another one of its category may cover without a finding.

    Returns:
        The findings, by source in the order given.
    """
    collectors = [Collector(source.name, source.file) for source in sources]
    contents = [read_contents(source, collector) for source, collector in zip(sources, collectors, strict=True)]
    pixels = decode_all(contents)
    for one, collector in zip(contents, collectors, strict=True):
        check_files(one, pixels, collector)
        _check_instances(one, pixels, overlap, collector)
        check_counts(one, collector)
    check_repeats(contents, pixels, collectors)
    return list(chain.from_iterable(collector.findings for collector in collectors))


def _check_instances(contents: Contents, pixels: dict[Key, Pixels], overlap: float, collector: Collector) -> None:
    progress = tqdm(contents.images, f"checking {contents.source.name}", unit="image", disable=None)
    for index, image in enumerate(progress):
        if not image.annotations:
            continue
        # Where the source is wrong about the size, training goes by the image.
        size = pixels.get(file_key(image), Pixels()).size or image.size
        if size is not None:
            check_image(contents, index, size, overlap, collector)
