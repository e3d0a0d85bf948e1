"""What `tools/prepare_dataset.py check` does."""

from pathlib import Path

from cupre_d2.data.check.checks import check_sources
from cupre_d2.data.check.cleaning import check_empty, fix
from cupre_d2.data.check.findings import exit_code, report
from cupre_d2.data.check.sources import sources_of


def check(target: str, images: Path | None = None, out: Path | None = None) -> int:
    """Prints what is wrong with a data set, and writes a cleaned copy if asked.

    Args:
        target: a name, a COCO JSON or a folder; see `sources_of`.
        images: the folder that the file names of a COCO JSON are relative to.
        out: where to write a cleaned copy; see `fix`.

    Returns:
        The exit code: 0 well, 1 warnings, 2 errors, of the data set as it is.

    Raises:
        DatasetError: see `sources_of` and `fix`.
    """
    sources = sources_of(target, images)
    # Not after minutes of checking.
    if out is not None:
        check_empty(out)
    findings = check_sources(sources)
    for line in report(findings):
        print(line)
    if out is not None:
        for line in fix(sources, findings, out):
            print(line)
    return exit_code(findings)
