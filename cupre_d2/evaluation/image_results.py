"""What an evaluator keeps of each image, gathered from all processes: in memory, and as COCO's results file."""

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from detectron2.utils import comm

from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class ImageResults(Generic[Result]):
    """Results by image of a registered data set, which is read when it is first asked for.

    Args:
        dataset_name: registered; has one record an image.
    """

    def __init__(self, dataset_name: str) -> None:
        self._name = dataset_name
        self._results: list[tuple[Hashable, Result]] = []
        self._records: dict[Hashable, dict[str, Any]] | None = None

    def reset(self) -> None:
        self._results, self._records = [], None

    def record(self, image_id: Hashable) -> dict[str, Any]:
        """The image's record.

        Raises:
            DatasetError: no image of the data set has this id, or several have one id.
        """
        records = self._read()
        if image_id not in records:
            raise DatasetError(
                f"predictions on {self._name!r}: image_id {image_id!r} is not the data set's; "
                f"expected ids such as {next(iter(records), None)!r}"
            )
        return records[image_id]

    def add(self, image_id: Hashable, result: Result) -> None:
        self._results.append((image_id, result))

    def gather(self) -> list[tuple[dict[str, Any], Result | None]] | None:
        """Each record with the image's result, None where it was not evaluated; None on processes other than the first.

        Images are in order of image_id if all are whole numbers, as pycocotools has them: it decides between equal
        scores. Else they are in the data set's order.

        Raises:
            DatasetError: an image was evaluated twice.
        """
        comm.synchronize()
        gathered = list(chain.from_iterable(comm.gather(self._results, dst=0)))
        if not comm.is_main_process():
            return None
        _check_unique(f"predictions on {self._name!r}", [image_id for image_id, _ in gathered], "one prediction an image")
        records = self._read()
        if len(gathered) < len(records):
            message = "%s: %d of %d images were not evaluated; all their cells count as missed"
            logger.warning(message, self._name, len(records) - len(gathered), len(records))
        results = dict(gathered)
        numbers = [image_id for image_id in records if isinstance(image_id, int)]
        image_ids = sorted(numbers) if len(numbers) == len(records) else records
        return [(records[image_id], results.get(image_id)) for image_id in image_ids]

    def _read(self) -> dict[Hashable, dict[str, Any]]:
        if self._records is None:
            records = get_records(self._name)
            _check_unique(f"dataset {self._name!r}", [record["image_id"] for record in records], "one record an image")
            self._records = {record["image_id"]: record for record in records}
        return self._records


def _check_unique(what: str, image_ids: Sequence[Hashable], expected: str) -> None:
    repeated = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{what}: {len(repeated)} image_ids are there more than once, e.g. {repeated[0]!r}; expected {expected}"
        )


class ResultsFile:
    """A JSON list of COCO results, one a line. Each process writes a part beside the file, and the first one joins them.

    Parts have names of their own, so that evaluations at the same time may write to one folder: the last to end has the
    file. The folder must be one for all processes, as Detectron2's OUTPUT_DIR is.
    """

    _part: IO[str]

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self) -> None:
        """Forgets what was written before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Removed when it is closed or forgotten, also where the evaluation ends with an error.
        self._part = tempfile.NamedTemporaryFile(  # noqa: SIM115
            "w", dir=self._path.parent, prefix=f".{self._path.name}.", suffix=".part"
        )

    def write(self, results: Iterable[Mapping[str, Any]]) -> None:
        self._part.writelines(json.dumps(result) + "\n" for result in results)

    def finish(self) -> None:
        """Joins the parts; all processes call it, and wait for the first."""
        self._part.flush()
        parts = comm.gather(self._part.name, dst=0)
        if comm.is_main_process():
            self._join(parts)
        comm.synchronize()
        self._part.close()

    def _join(self, parts: Sequence[str]) -> None:
        joined = f"{self._part.name}.joined"
        with open(joined, "w") as file:
            file.write("[")
            separator = "\n"
            for line in chain.from_iterable(map(self._lines, parts)):
                file.write(separator + line.rstrip("\n"))
                separator = ",\n"
            file.write("\n]\n")
        os.replace(joined, self._path)

    def _lines(self, part: str) -> Iterator[str]:
        if not os.path.isfile(part):
            logger.warning("%s: lacks the detections of a process, whose part %s is not there", self._path, part)
            return
        with open(part) as file:
            yield from file
