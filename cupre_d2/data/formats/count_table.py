"""Images with the number of their cells in a CSV."""

import logging
from pathlib import Path
from typing import Any

from cupre_d2.data.formats.image_folder import image_sizes
from cupre_d2.data.formats.tables import image_below, read_rows
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)


def load_count_table(
    images: Path, table: Path, columns: tuple[str, str] | None = ("image", "count")
) -> list[dict[str, Any]]:
    """Records with "count", in the table's order. image_id is the name in the table.

    Args:
        images: the folder that the names in the table are relative to.
        table: a CSV.
        columns: its columns of the image's name and of the count; None if it has no header, and these two columns.

    Raises:
        DatasetError: the table is missing, malformed or empty, names an image twice, one that is not on disk or one
            outside the folder, a count is no whole number from 0 on, or an image cannot be read.
    """
    name_column, count_column = columns or ("image", "count")
    counts: dict[str, int] = {}
    files = []
    for row, fields in read_rows(table, (name_column, count_column), header=columns is not None):
        name = fields[name_column]
        if name in counts:
            raise DatasetError(f"{row}: image {name} for the second time; expected one row an image")
        files.append(image_below(images.absolute(), name, row))
        counts[name] = _count(fields[count_column], row, count_column)
    if not counts:
        raise DatasetError(f"{table}: no row; expected one an image")
    return [
        {"file_name": str(file), "image_id": name, "height": height, "width": width, "count": count}
        for file, (name, count), (height, width) in zip(files, counts.items(), image_sizes(files), strict=True)
    ]


def _count(text: str, row: str, column: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit()):
        raise DatasetError(f"{row}, field {column}: {text!r}; expected a whole number from 0 on")
    return int(text)
