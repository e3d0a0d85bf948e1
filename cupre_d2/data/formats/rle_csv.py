"""Kaggle's run-length CSV: a row an instance, runs as `start length start length ...`, pixels counted from 1.

Sartorius' cell competition counts along rows (`id,annotation,width,height,cell_type,...`), the Data Science Bowl 2018
down columns (`ImageId,EncodedPixels`).
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cupre_d2.data.formats.image_folder import image_sizes
from cupre_d2.data.formats.masks import mask_to_annotation
from cupre_d2.data.formats.tables import image_below, log_unnamed, read_rows
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

# Column of the image's id and of the runs.
SARTORIUS = ("id", "annotation")
BOWL = ("ImageId", "EncodedPixels")


def _png(image_id: str) -> str:
    return f"{image_id}.png"


def load_rle_csv(
    table: Path,
    images: Path,
    columns: tuple[str, str] = SARTORIUS,
    order: Literal["rows", "columns"] = "rows",
    locate: Callable[[str], str] = _png,
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
    rows = [(row, fields) for row, fields in read_rows(table, columns)]
    if not rows:
        raise DatasetError(f"{table}: no row; expected one an instance")
    first = {fields[columns[0]]: (row, fields) for row, fields in reversed(rows)}
    ids = list(dict.fromkeys(fields[columns[0]] for _, fields in rows))
    folder = images.absolute()
    files = [image_below(folder, locate(image_id) if image_id else "", first[image_id][0]) for image_id in ids]
    log_unnamed(table, folder, set(files))
    records = {
        image_id: _record(image_id, file, size, first[image_id][1])
        for image_id, file, size in zip(ids, files, image_sizes(files), strict=True)
    }
    for row, fields in rows:
        record = records[fields[columns[0]]]
        _check_size(row, fields, record)
        mask = _decode(fields[columns[1]], row, columns[1], record["height"], record["width"], order)
        annotation = mask_to_annotation(mask)
        if annotation:
            record["annotations"].append(annotation)
    _log_blank_rows(table, len(rows), list(records.values()))
    return list(records.values())


def _record(image_id: str, file: Path, size: tuple[int, int], fields: dict[str, str]) -> dict[str, Any]:
    record: dict[str, Any] = {"file_name": str(file), "image_id": image_id, "height": size[0], "width": size[1]}
    if fields.get("cell_type"):
        record["cell_type"] = fields["cell_type"]
    return record | {"annotations": []}


def _check_size(row: str, fields: dict[str, str], record: dict[str, Any]) -> None:
    for side in ("height", "width"):
        if fields.get(side, str(record[side])).strip() != str(record[side]):
            raise DatasetError(f"{row}, field {side}: {fields[side]!r}; expected that of its image, {record[side]}")


def _log_blank_rows(table: Path, rows: int, records: list[dict[str, Any]]) -> None:
    blank = rows - sum(max(1, len(record["annotations"])) for record in records)
    if blank:
        logger.warning("%s: left out %d rows without runs, of images that other rows cover", table, blank)


def _decode(text: str, row: str, column: str, height: int, width: int, order: str) -> np.ndarray:
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
