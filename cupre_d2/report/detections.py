"""Reads an evaluation back: the detections in COCO's results format beside the data set's records."""

import heapq
import json
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import DatasetError
from cupre_d2.evaluation.cells import Detections, TrueCells
from cupre_d2.report.matching import ImageMatch, Tally, match_image

# Of the score, at which images are put in order; the page opens with it too.
START_LEVEL = 50


@dataclass(frozen=True)
class Evaluated:
    """A data set as a model found it.

    Attributes:
        images: how many were evaluated.
        worst: those of the most errors (missed cells and false detections at START_LEVEL), the most first.
        tally: of all images.
    """

    name: str
    images: int
    worst: list[ImageMatch]
    tally: Tally


def read_evaluation(file: Path, name: str, use_cats: bool, keep: int) -> Evaluated:
    """Matches all images, one at a time, and keeps the `keep` worst.

    Args:
        file: instances_results.json of this data set.
        name: of the registered data set.
        use_cats: whether categories are told apart.

    Raises:
        DatasetError: the data set or its ground truth cannot be used, or the file does not hold its detections.
    """
    records = get_records(name)
    tally = Tally()

    def tallied() -> Iterator[tuple[int, ImageMatch]]:
        for place, image in _match_all(file, name, records, use_cats):
            tally.add(image)
            yield place, image

    # Of as many errors, the first of the data set.
    worst = heapq.nlargest(keep, tallied(), key=lambda pair: (pair[1].counts(START_LEVEL).errors, -pair[0]))
    return Evaluated(name, len(records), [image for _, image in worst], tally)


def read_images(file: Path, name: str, use_cats: bool, image_ids: Sequence[Hashable]) -> list[ImageMatch]:
    """The matches of some images, in the order asked for; arguments and errors as of `read_evaluation`."""
    records = {record["image_id"]: record for record in get_records(name)}
    # Those alone: with the detections of all images, a large data set would not fit into memory.
    wanted = set(image_ids)
    matches = _match_all(file, name, [records[image_id] for image_id in image_ids], use_cats, records.keys() - wanted)
    found = {image.record["image_id"]: image for _, image in matches}
    return [found[image_id] for image_id in image_ids]


def _match_all(
    file: Path, name: str, records: list[dict[str, Any]], use_cats: bool, others: Collection[Hashable] = ()
) -> Iterator[tuple[int, ImageMatch]]:
    """Place among the records and match of each, also of those without detections; `others` are passed over."""
    places: dict[Hashable, int] = {record["image_id"]: place for place, record in enumerate(records)}
    # Records have other category ids than the annotation file.
    to_contiguous = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", {})

    def match(place: int, results: Iterable[Mapping[str, Any]]) -> tuple[int, ImageMatch]:
        record = records[place]
        own = ({**one, "category_id": to_contiguous.get(one["category_id"], one["category_id"])} for one in results)
        detections = Detections.of_results(own, record["height"], record["width"])
        return place, match_image(record, TrueCells.of(record, name), detections, use_cats)

    for image_id, results in groupby(_results(file), key=itemgetter("image_id")):
        if image_id in others:
            continue
        place = places.pop(image_id, None)
        if place is None:
            raise DatasetError(
                f"{file}: image_id {image_id!r} is not of {name!r} or there twice; expected the detections image by image"
            )
        yield match(place, results)
    for place in places.values():
        yield match(place, ())


def _results(file: Path) -> Iterator[dict[str, Any]]:
    """Line by line, as ResultsFile writes them: a large data set's detections at once would take gigabytes."""
    with file.open() as lines:
        for line in lines:
            text = line.strip().rstrip(",")
            if text in ("", "[", "]"):
                continue
            if not (text.startswith("{") and text.endswith("}")):
                raise DatasetError(
                    f"{file}: expected one detection a line, as CellCOCOEvaluator writes them; evaluate again"
                )
            yield json.loads(text)
