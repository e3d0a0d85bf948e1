"""CSV files that come with images."""

import csv
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from cupre_d2.data.formats.image_folder import IMAGE_SUFFIXES
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)


def read_rows(file: Path, columns: Sequence[str], header: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV as dicts, each with the name that errors call it by.

    Args:
        file: the CSV.
        columns: those it must have, in any order and with others between; without a header, those it has.

    Raises:
        DatasetError: it is missing or no CSV, a column is missing, or a row is too short or too long.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, None if header else list(columns), strict=True)
            found = reader.fieldnames or []
            if not set(columns) <= set(found):
                raise DatasetError(f"{file}: columns {', '.join(map(str, found))}; expected {', '.join(columns)}")
            for row in reader:
                name = f"{file}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise DatasetError(f"{name}: more or fewer fields than columns; expected {len(found)}")
                yield name, row
    except FileNotFoundError as error:
        raise DatasetError(f"{file}: no such file; expected a CSV with columns {', '.join(columns)}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: cannot be read as CSV ({error})") from error


def image_below(folder: Path, name: str, row: str) -> Path:
    """The file of a name in a table; it must lie below the folder.

    Raises:
        DatasetError: it points elsewhere, or is not on disk.
    """
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DatasetError(f"{row}: image {name!r}; expected the name of a file below {folder}")
    if not os.path.isfile(folder / path):
        raise DatasetError(f"{row}: image {folder / path} is not on disk")
    return folder / path


def log_unnamed(table: Path, folder: Path, named: Collection[Path]) -> None:
    """Says how many images right in a folder a table does not name, if any: it may be one split's. Absolute paths."""
    others = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file not in named]
    if others:
        logger.info("%s: left out %d images of %s that it does not name", table, len(others), folder)
