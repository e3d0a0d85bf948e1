"""COCO's results file, written image by image."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class ResultsFile:
    """A JSON list of COCO results. Each process writes a part beside the file, and the first one joins them.

    The folder must be one for all processes, as Detectron2's OUTPUT_DIR is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = self._part_of(comm.get_rank())

    def start(self) -> None:
        """Forgets what was written before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._part.write_text("")

    def write(self, results: Iterable[Mapping[str, Any]]) -> None:
        with self._part.open("a") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)

    def finish(self) -> None:
        """Joins the parts of all processes; only the first one does anything. All must have written what they have."""
        if not comm.is_main_process():
            return
        joined = self._part.with_suffix(".joined")
        with joined.open("w") as file:
            file.write("[")
            separator = "\n"
            for rank in range(comm.get_world_size()):
                for line in self._lines(rank):
                    file.write(separator + line.rstrip("\n"))
                    separator = ",\n"
            file.write("\n]\n")
        os.replace(joined, self._path)

    def _lines(self, rank: int) -> Iterable[str]:
        part = self._part_of(rank)
        if not part.is_file():
            logger.warning("%s: lacks the detections of process %d, whose part %s is not there", self._path, rank, part)
            return
        with part.open() as file:
            yield from file
        part.unlink()

    def _part_of(self, rank: int) -> Path:
        return self._path.with_name(f".{self._path.name}.part{rank}")
