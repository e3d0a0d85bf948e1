"""Kaggle's run-length CSV: a row an instance, runs as `start length start length ...`, pixels counted from 1.

Sartorius' cell competition counts along rows (`id,annotation,width,height,cell_type,...`), the Data Science Bowl 2018
down columns (`ImageId,EncodedPixels`).
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cupre_d2.data.formats.image_folder import image_sizes
from cupre_d2.data.formats.masks import mask_to_annotation
from cupre_d2.data.formats.tables import image_below, read_rows
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

    A row without runs says that its image has no cell. "cell_type" is taken over where there is such a column.

    Args:
        table: the CSV.
        images: folder of the images.
        columns: its columns of the image's id and of the runs.
        order: whether pixels are counted along rows or down columns.
        locate: path of an image in the folder, given its id.

    Raises:
        DatasetError: the table is missing, malformed or empty, an image is not on disk, outside the folder or cannot be
            read, or runs are no pairs of numbers, overlap or leave the image.
    """
    rows = [(row, fields) for row, fields in read_rows(table, columns)]
    if not rows:
        raise DatasetError(f"{table}: no row; expected one an instance")
    first = {fields[columns[0]]: (row, fields) for row, fields in reversed(rows)}
    ids = list(dict.fromkeys(fields[columns[0]] for _, fields in rows))
    files = [image_below(images.absolute(), locate(image_id) if image_id else "", first[image_id][0]) for image_id in ids]
    records = {
        image_id: _record(image_id, file, size, first[image_id][1])
        for image_id, file, size in zip(ids, files, image_sizes(files), strict=True)
    }
    for row, fields in rows:
        record = records[fields[columns[0]]]
        mask = _decode(fields[columns[1]], row, columns[1], record["height"], record["width"], order)
        annotation = mask_to_annotation(mask)
        if annotation:
            record["annotations"].append(annotation)
    return list(records.values())


def _record(image_id: str, file: Path, size: tuple[int, int], fields: dict[str, str]) -> dict[str, Any]:
    record: dict[str, Any] = {"file_name": str(file), "image_id": image_id, "height": size[0], "width": size[1]}
    if fields.get("cell_type"):
        record["cell_type"] = fields["cell_type"]
    return record | {"annotations": []}


def _decode(text: str, row: str, column: str, height: int, width: int, order: str) -> np.ndarray:
    try:
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
