"""Images with the number of their cells in a CSV."""

import re
from pathlib import Path
from typing import Any

from cupre_d2.data.formats.image_folder import image_sizes
from cupre_d2.data.formats.tables import image_below, log_unnamed, read_rows
from cupre_d2.errors import DatasetError


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
        name = fields[name_column]
        file = image_below(folder, name, row)
        if file in counts:
            raise DatasetError(f"{row}: image {name} for the second time; expected one row an image")
        counts[file] = name, _count(fields[count_column], row, count_column)
    if not counts:
        raise DatasetError(f"{table}: no row; expected one an image")
    log_unnamed(table, folder, counts)
    return [
        {"file_name": str(file), "image_id": name, "height": height, "width": width, "count": count}
        for (file, (name, count)), (height, width) in zip(counts.items(), image_sizes(list(counts)), strict=True)
    ]


def _count(text: str, row: str, column: str) -> int:
    if not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII):
        raise DatasetError(f"{row}, field {column}: {text!r}; expected a whole number from 0 on")
    return int(text)
