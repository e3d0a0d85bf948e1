"""Finding what is wrong with a data set, or with all that are on disk, and printing it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.builtin.entry import Role
from cupre_d2.data.catalog import datasets_root
from cupre_d2.data.curation.checked_splits import CheckedSplit, splits_of, splits_of_name
from cupre_d2.data.curation.cleaning import check_empty, fix
from cupre_d2.data.curation.contents import read_contents
from cupre_d2.data.curation.findings import Collector, Finding, exit_code, report, results, results_table
from cupre_d2.data.curation.image_checks import Pixels, check_counts, check_files, check_repeats, decode_all, file_key
from cupre_d2.data.curation.instance_checks import OVERLAP, check_image
from cupre_d2.errors import DatasetError
from cupre_d2.files import write_text

_COMMAND = "DETECTRON2_DATASETS=... python tools/prepare_dataset.py check all"


def check(
    target: str | Sequence[str],
    images: Path | None = None,
    out: Path | None = None,
    roles: Mapping[str, Role] | None = None,
) -> int:
    """Prints what is wrong with a data set, and writes a cleaned copy if asked.

    Args:
        target: a name, a COCO JSON or a folder, see `splits_of`; or several, between which leaks are found too.
        images: the folder that the file names of a COCO JSON are relative to.
        out: where to write a cleaned copy; see `fix`.
        roles: of splits by name, in place of what their names say.

    Returns:
        The exit code: 0 well, 1 warnings, 2 errors, of the data set as it is.

    Raises:
        DatasetError: see `splits_of` and `fix`.
    """
    splits = [split for one in ([target] if isinstance(target, str) else target) for split in splits_of(one, images)]
    splits = [replace(split, role=(roles or {}).get(split.name, split.role)) for split in splits]
    # Not after minutes of checking.
    if out is not None:
        check_empty(out)
    findings = check_splits(splits)
    for line in report(findings):
        print(line)
    if out is not None:
        for line in fix(splits, findings, out):
            print(line)
    return exit_code(findings)


def check_all(out: Path | None = None) -> int:
    """Checks all that is there and prints the table of findings by data set.

    Args:
        out: a file without ending; `out`.md and `out`.json are written, the second with the count of each kind. Its
            folder is made.

    Returns:
        The worst exit code.

    Raises:
        DatasetError: there is no data set at all, or the folder of `out` cannot be made.
    """
    if out:
        # Before anything is checked, which takes minutes.
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatasetError(
                f"{out.parent}: cannot be made ({error.strerror}); expected a folder for the results"
            ) from error
    root = datasets_root()
    found: dict[str, list[Finding]] = {
        dataset.name: check_splits(splits_of_name(dataset.name))
        for dataset in CATALOGUE
        if any(split.missing(root) is None for split in dataset.splits)
    }
    if not found:
        raise DatasetError(f"{root}: no data set of the catalogue; see prepare_dataset.py list")
    table = results_table(found)
    print(table)
    if out:
        write_text(f"{out}.json", json.dumps({"command": _COMMAND, "data sets": results(found)}, indent=2) + "\n")
        write_text(f"{out}.md", f"# `check` over every data set at hand\n\n```\n{_COMMAND}\n```\n\n{table}\n")
    return max(map(exit_code, found.values()))


def check_splits(splits: Sequence[CheckedSplit], overlap: float = OVERLAP) -> list[Finding]:
    """What is wrong with the splits of a data set, each on its own and with each other; by split in the order given.

    Args:
        overlap: the share of an instance, 0 to 1, that another one of its category may cover without a finding.
    """
    collectors = [Collector(split.name, split.file) for split in splits]
    contents = [read_contents(split, collector) for split, collector in zip(splits, collectors, strict=True)]
    pixels = decode_all(contents)
    for one, collector in zip(contents, collectors, strict=True):
        check_files(one, pixels, collector)
        for index, image in enumerate(tqdm(one.images, f"checking {one.split.name}", unit="image", disable=None)):
            # Where the split is wrong about the size, training goes by the image.
            size = pixels.get(file_key(image), Pixels()).size or image.size
            if image.annotations and size is not None:
                check_image(one, index, size, overlap, collector)
        check_counts(one, collector)
    check_repeats(contents, pixels, collectors)
    return list(chain.from_iterable(collector.findings for collector in collectors))
