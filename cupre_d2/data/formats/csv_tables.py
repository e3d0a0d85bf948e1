"""CSV files that come with images: their numbers of cells, or their instances as run lengths."""

import csv
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cupre_d2.data.formats.image_folder import IMAGE_SUFFIXES, image_record, in_threads
from cupre_d2.data.formats.rle import mask_to_annotation
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

# Column of the image's id and of the runs.
SARTORIUS = ("id", "annotation")
BOWL = ("ImageId", "EncodedPixels")


def load_count_table(
    images: Path, table: Path, columns: tuple[str, str] | None = ("image", "count")
) -> list[dict[str, Any]]:
    """Records with "count", in the table's order. image_id is the name in the table.

    Images right in the folder that the table does not name are left out, counted and logged.

    Args:
        images: the folder that the names in the table are relative to.
        table: a CSV.
        columns: its columns of the image's name and of the count; None if it has no header, and these two columns.

    Raises:
        DatasetError: the table is missing, malformed or empty, names an image twice, one that is not on disk or one
            outside the folder, a count is no whole number from 0 on, or an image cannot be read.
    """
    name_column, count_column = columns or ("image", "count")
    counts: dict[Path, tuple[str, int]] = {}
    folder = images.absolute()
    for row, fields in read_rows(table, (name_column, count_column), header=columns is not None):
        name, count = fields[name_column], fields[count_column]
        file = _image_below(folder, name, row)
        if file in counts:
            raise DatasetError(f"{row}: image {name} for the second time; expected one row an image")
        if not re.fullmatch(r"\s*\d{1,9}\s*", count, re.ASCII):
            raise DatasetError(f"{row}, field {count_column}: {count!r}; expected a whole number from 0 on")
        counts[file] = name, int(count)
    if not counts:
        raise DatasetError(f"{table}: no row; expected one an image")
    _log_unnamed(table, folder, counts)
    return in_threads(lambda file: image_record(file, counts[file][0]) | {"count": counts[file][1]}, counts)


def load_rle_csv(
    table: Path,
    images: Path,
    columns: tuple[str, str] = SARTORIUS,
    order: Literal["rows", "columns"] = "rows",
    locate: Callable[[str], str] = "{}.png".format,
) -> list[dict[str, Any]]:
    """Records of the images that the table names, in order of their first row; category 0.

    A row without runs says that its image has no cell; where other rows have some it is left out, counted and logged,
    as are images right in the folder that the table does not name. "cell_type" is taken over where there is such a
    column, and "width" and "height", where there are, must be the image's.

    Args:
        table: the CSV.
        images: folder of the images.
        columns: its columns of the image's id and of the runs.
        order: whether pixels are counted along rows or down columns.
        locate: path of an image in the folder, given its id.

    Raises:
        DatasetError: the table is missing, malformed or empty, an image is not on disk, outside the folder or cannot be
            read or has another size than its row says, or runs are no pairs of numbers, overlap or leave the image.
    """
    rows = list(read_rows(table, columns))
    if not rows:
        raise DatasetError(f"{table}: no row; expected one an instance")
    first = {fields[columns[0]]: (row, fields) for row, fields in reversed(rows)}
    ids = list(dict.fromkeys(fields[columns[0]] for _, fields in rows))
    folder = images.absolute()
    files = [_image_below(folder, locate(image_id) if image_id else "", first[image_id][0]) for image_id in ids]
    _log_unnamed(table, folder, set(files))
    records = dict(zip(ids, in_threads(image_record, files, ids), strict=True))
    for image_id, record in records.items():
        cell_type = first[image_id][1].get("cell_type")
        record.update({"cell_type": cell_type} if cell_type else {}, annotations=[])
    for row, fields in rows:
        record = records[fields[columns[0]]]
        for side in ("height", "width"):
            if fields.get(side, str(record[side])).strip() != str(record[side]):
                raise DatasetError(f"{row}, field {side}: {fields[side]!r}; expected that of its image, {record[side]}")
        mask = _decode_runs(fields[columns[1]], row, columns[1], record["height"], record["width"], order)
        annotation = mask_to_annotation(mask)
        if annotation:
            record["annotations"].append(annotation)
    blank = len(rows) - sum(max(1, len(record["annotations"])) for record in records.values())
    if blank:
        logger.warning("%s: left out %d rows without runs, of images that other rows cover", table, blank)
    return list(records.values())


def _decode_runs(text: str, row: str, column: str, height: int, width: int, order: str) -> np.ndarray:
    try:
        # numpy would take 1_0 and digits of other scripts too.
        if not re.fullmatch(r"[-\d\s]*", text, re.ASCII):
            raise ValueError(text)
        runs = np.array(text.split(), dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"{row}, field {column}: expected pairs of whole numbers, start and length") from error
    starts, lengths = runs[:, 0] - 1, runs[:, 1]
    if (lengths < 1).any() or (starts < 0).any() or (lengths > height * width - starts).any():
        raise DatasetError(f"{row}, field {column}: runs leave the image; expected pixels 1 to {height * width}")
    by_start = np.argsort(starts)
    if (starts[by_start][1:] < (starts + lengths)[by_start][:-1]).any():
        raise DatasetError(f"{row}, field {column}: runs overlap; expected each pixel once")
    flat = np.zeros(height * width, bool)
    for start, length in zip(starts, lengths, strict=True):
        flat[start : start + length] = True
    return flat.reshape(height, width) if order == "rows" else flat.reshape(width, height).T


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


def _image_below(folder: Path, name: str, row: str) -> Path:
    """The file of a name in a table; raises DatasetError where it lies not below the folder, or is not on disk."""
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DatasetError(f"{row}: image {name!r}; expected the name of a file below {folder}")
    if not os.path.isfile(folder / path):
        raise DatasetError(f"{row}: image {folder / path} is not on disk")
    return folder / path


def _log_unnamed(table: Path, folder: Path, named: Collection[Path]) -> None:
    """Says how many images right in a folder a table does not name, if any: it may be one split's. Absolute paths."""
    others = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file not in named]
    if others:
        logger.info("%s: left out %d images of %s that it does not name", table, len(others), folder)
