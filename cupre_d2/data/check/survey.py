"""Every data set of the catalogue that is on disk, checked, in one table."""

import json
from pathlib import Path

from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.catalog import datasets_root
from cupre_d2.data.check.checks import check_sources
from cupre_d2.data.check.findings import Finding, exit_code, results, results_table
from cupre_d2.data.check.sources import sources_of_name
from cupre_d2.errors import DatasetError
from cupre_d2.files import write_text

_COMMAND = "DETECTRON2_DATASETS=... python tools/prepare_dataset.py check all"


def survey(out: Path | None = None) -> int:
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
        _make_folder(out.parent)
    root = datasets_root()
    found: dict[str, list[Finding]] = {
        dataset.name: check_sources(sources_of_name(dataset.name))
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


def _make_folder(folder: Path) -> None:
    """Before anything is checked, which takes minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be made ({error.strerror}); expected a folder for the results") from error
