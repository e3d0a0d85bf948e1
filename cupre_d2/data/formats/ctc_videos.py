"""The Cell Tracking Challenge: a video is a folder of frames, its truth lies in folders beside it.

`01/t000.tif`, `01_GT/SEG/man_seg000.tif` (gold: drawn by experts), `01_ST/SEG/man_seg000.tif` (silver: agreed on by
the challenge's best programs), `01_GT/TRA/man_track000.tif` (a mark in every cell). Frame numbers have three or four
digits. Three-dimensional sets, whose files are stacks and whose gold truth is named by slices, are refused.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cupre_d2.data.formats.image_folder import TIFF_SUFFIXES, image_record, in_threads, list_images
from cupre_d2.data.formats.mask_images import check_shape, masked_record, read_labels
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

Truth = Literal["silver", "gold"]
_FOLDERS: dict[Truth, str] = {"silver": "ST", "gold": "GT"}
_VIDEO = re.compile(r"\d\d")


def load_ctc(folder: Path, videos: Sequence[str] | None = None, truth: Truth = "silver") -> list[dict[str, Any]]:
    """Records of the frames of some videos that have a truth, in order.

    Gold truth is sparse: many of its frames outline a few cells of all, and training on them would teach that the
    others are background. Of gold frames those are taken whose every marked cell (01_GT/TRA) is outlined; frames
    left out, and frames without truth, are counted and logged. Silver truth is taken as it is; it lacks a few of the
    marked cells in places. image_id is `SET/01/t000`.

    Args:
        folder: of one set, as DIC-C2DH-HeLa.
        videos: names of its videos, as "01"; None for all.
        truth: "silver" or "gold".

    Raises:
        DatasetError: a folder is missing, no frame is left, two files are one frame, or a file is no frame of two
            dimensions, cannot be read or has another size than its frame.
    """
    videos = _videos(folder) if videos is None else videos
    records = [record for video in videos for record in _load_video(folder, video, truth)]
    if not records:
        remedy = "NN_ST/SEG/man_seg000.tif for NN/t000.tif" if truth == "silver" else "silver truth, NN_ST, in its place"
        raise DatasetError(f"{folder}: no frame with a complete {truth} truth in {', '.join(videos)}; expected {remedy}")
    return records


def load_ctc_images(folder: Path) -> list[dict[str, Any]]:
    """Records without annotations of all frames of all videos.

    Raises:
        DatasetError: there is no video, or a frame cannot be read.
    """
    frames = [frame for video in _videos(folder) for frame in _frames(folder / video, "t").values()]
    return in_threads(lambda frame: image_record(frame, _image_id(folder, frame)), frames)


def _videos(folder: Path) -> list[str]:
    videos = [entry.name for entry in folder.glob("*") if entry.is_dir() and _VIDEO.fullmatch(entry.name)]
    if not videos:
        raise DatasetError(f"{folder}: no video; expected folders 01 and 02 of frames t000.tif")
    return sorted(videos)


def _frames(folder: Path, prefix: str) -> dict[int, Path]:
    """The files of a folder by their frame's number."""
    found: dict[int, Path] = {}
    for file in list_images(folder, TIFF_SUFFIXES):
        match = re.fullmatch(prefix + r"(\d{3,4})", file.stem, re.ASCII)
        if match is None:
            raise DatasetError(f"{file}: no frame of a two-dimensional video; expected {prefix}000.tif or {prefix}0000.tif")
        other = found.setdefault(int(match[1]), file)
        if other != file:
            raise DatasetError(f"{file}: {other.name} is the same frame; expected one file a frame")
    return found


def _load_video(folder: Path, video: str, truth: Truth) -> list[dict[str, Any]]:
    frames = _frames(folder / video, "t")
    masks = folder / f"{video}_{_FOLDERS[truth]}" / "SEG"
    truths = _frames(masks, "man_seg")
    annotated = [number for number in frames if number in truths]
    if len(annotated) < len(frames):
        logger.warning("%s: no %s truth for %d of %d frames", masks, truth, len(frames) - len(annotated), len(frames))
    if len(annotated) < len(truths):
        logger.warning("%s: left out %d of %d files without a frame", masks, len(truths) - len(annotated), len(truths))
    if truth == "gold":
        annotated = _complete(folder / f"{video}_GT", truths, annotated)
    pairs = [(frames[number], truths[number]) for number in annotated]
    return in_threads(lambda pair: masked_record(pair[0], _image_id(folder, pair[0]), pair[1], read_labels(pair[1])), pairs)


def _complete(folder: Path, truths: dict[int, Path], annotated: list[int]) -> list[int]:
    """The frames whose every mark of a cell has its outline; all where there are no marks."""
    if not (folder / "TRA").is_dir():
        logger.warning("%s: no folder TRA, so that gold truth is taken to be complete", folder)
        return annotated
    marks = _frames(folder / "TRA", "man_track")
    whole = [number for number in annotated if number in marks and _outlines_all(truths[number], marks[number])]
    if len(whole) < len(annotated):
        message = "%s: left out %d of %d frames of gold truth, which do not outline every cell that TRA marks"
        logger.warning(message, folder, len(annotated) - len(whole), len(annotated))
    return whole


def _outlines_all(truth: Path, marks: Path) -> bool:
    """Whether each mark has an outline of its own that holds more than half of it, as the challenge matches them."""
    outlines, marked = read_labels(truth), read_labels(marks)
    check_shape(marks, marked.shape, *outlines.shape)
    inside = marked > 0
    cells, cell = np.unique(marked[inside], return_inverse=True)
    overlaps, pixels = np.unique(np.stack([cell, outlines[inside]]), axis=1, return_counts=True)
    covering = overlaps[1][(overlaps[1] > 0) & (2 * pixels > np.bincount(cell)[overlaps[0]])]
    return len(np.unique(covering)) == len(covering) == len(cells)


def _image_id(folder: Path, frame: Path) -> str:
    return f"{folder.name}/{frame.parent.name}/{frame.stem}"
