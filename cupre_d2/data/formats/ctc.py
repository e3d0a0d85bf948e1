"""The Cell Tracking Challenge: a video is a folder of frames, its truth lies in folders beside it.

`01/t000.tif`, `01_GT/SEG/man_seg000.tif` (gold: drawn by experts), `01_ST/SEG/man_seg000.tif` (silver: agreed on by
the challenge's best programs), `01_GT/TRA/man_track000.tif` (a mark in every cell). Frame numbers have three or four
digits. Three-dimensional sets are no folders of pages and refused.
"""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cupre_d2.data.formats.image_folder import TIFF_SUFFIXES, image_size, image_sizes, list_images
from cupre_d2.data.formats.masks import check_shape, labels_to_annotations, read_labels
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

Truth = Literal["silver", "gold"]
_FOLDERS: dict[Truth, str] = {"silver": "ST", "gold": "GT"}
_VIDEO = re.compile(r"\d\d")


def load_ctc(folder: Path, videos: Sequence[str], truth: Truth = "silver") -> list[dict[str, Any]]:
    """Records of the frames of some videos that have a truth, in order.

    Gold truth is sparse: many of its frames outline a few cells of all, and training on them would teach that the
    others are background. Of gold frames those are taken whose every marked cell (01_GT/TRA) is outlined; frames
    left out, and frames without truth, are counted and logged. image_id is `SET/01/t000`.

    Args:
        folder: of one set, as DIC-C2DH-HeLa.
        videos: names of its videos, as "01".
        truth: "silver" or "gold".

    Raises:
        DatasetError: a folder is missing, no frame is left, or a file cannot be read or has another size than its frame.
    """
    records = []
    for video in videos:
        frames = _frames(folder, video)
        masks = folder / f"{video}_{_FOLDERS[truth]}" / "SEG"
        truths = {_number(file): file for file in list_images(masks, TIFF_SUFFIXES)}
        annotated = [number for number in frames if number in truths]
        if len(annotated) < len(frames):
            logger.warning("%s: no %s truth for %d of %d frames", masks, truth, len(frames) - len(annotated), len(frames))
        whole = _complete(folder, video, truths, annotated) if truth == "gold" else annotated
        records += _read(folder, [(frames[number], truths[number]) for number in whole])
    if not records:
        raise DatasetError(
            f"{folder}: no frame with a complete {truth} truth in {', '.join(videos)}; expected silver truth, ST"
        )
    return records


def load_ctc_images(folder: Path) -> list[dict[str, Any]]:
    """Records without annotations of all frames of all videos.

    Raises:
        DatasetError: there is no video, or a frame cannot be read.
    """
    videos = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _VIDEO.fullmatch(entry.name))
    if not videos:
        raise DatasetError(f"{folder}: no video; expected folders 01 and 02 of frames t000.tif")
    files = [file for video in videos for file in _frames(folder, video).values()]
    return [_record(folder, file, *size) for file, size in zip(files, image_sizes(files), strict=True)]


def _frames(folder: Path, video: str) -> dict[int, Path]:
    return {_number(file): file for file in list_images(folder / video, TIFF_SUFFIXES)}


def _number(file: Path) -> int:
    digits = re.search(r"(\d+)$", file.stem)
    if digits is None:
        raise DatasetError(
            f"{file}: no frame number in the file name; expected t000.tif, man_seg000.tif or man_track000.tif"
        )
    return int(digits[1])


def _complete(folder: Path, video: str, truths: dict[int, Path], annotated: Sequence[int]) -> list[int]:
    """The frames whose every mark of a cell lies in an outline; all where there are no marks."""
    marks = folder / f"{video}_GT" / "TRA"
    if not marks.is_dir():
        logger.warning("%s: no such folder, so that gold truth is taken to be complete", marks)
        return list(annotated)
    files = {_number(file): file for file in list_images(marks, TIFF_SUFFIXES)}
    whole = [number for number in annotated if number in files and _outlines_all(truths[number], files[number])]
    if len(whole) < len(annotated):
        logger.warning(
            "%s: left out %d of %d frames of gold truth that outline a part of the cells only",
            folder / f"{video}_GT",
            len(annotated) - len(whole),
            len(annotated),
        )
    return whole


def _outlines_all(truth: Path, marks: Path) -> bool:
    outlines, marked = read_labels(truth), read_labels(marks)
    check_shape(marks, marked.shape, *outlines.shape)
    return set(np.unique(marked)) == set(np.unique(marked[outlines > 0])) | {0}


def _read(folder: Path, pairs: Sequence[tuple[Path, Path]]) -> list[dict[str, Any]]:
    def annotated(pair: tuple[Path, Path]) -> dict[str, Any]:
        frame, truth = pair
        height, width = image_size(frame)
        labels = read_labels(truth)
        check_shape(truth, labels.shape, height, width)
        return _record(folder, frame, height, width) | {"annotations": list(labels_to_annotations(labels))}

    with ThreadPoolExecutor() as pool:
        return list(pool.map(annotated, pairs))


def _record(folder: Path, frame: Path, height: int, width: int) -> dict[str, Any]:
    return {
        "file_name": str(frame),
        "image_id": f"{folder.name}/{frame.parent.name}/{frame.stem}",
        "height": height,
        "width": width,
    }
