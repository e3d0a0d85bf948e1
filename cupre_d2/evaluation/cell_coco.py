"""COCO-style evaluation with the changes of LIVECell's authors (areas and numbers of detections).

The numbers are pycocotools', as the tests show; the way to them is not. Images are matched while predictions arrive, and of
an image only its matches are kept, some 24 bytes a detection, neither masks nor IoUs: see `coco_metrics`.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import create_small_table
from tabulate import tabulate

from cupre_d2.errors import ConfigError
from cupre_d2.evaluation.cells import Detections, TrueCells, areas_of, overlaps
from cupre_d2.evaluation.coco_metrics import LARGEST, Matches, Scores, Summary, accumulate, area_names, match
from cupre_d2.evaluation.image_results import ImageResults, ResultsFile

logger = logging.getLogger(__name__)

RESULTS_FILE = "instances_results.json"
TASKS = ("bbox", "segm")
# The one category where categories are not told apart.
ANY = -1

# Matches of an image in a task, by category.
ByCategory = dict[int, Matches]
_LIVECELL_NAME = re.compile(r"([A-Za-z0-9]+)_Phase_")


class CellCOCOEvaluator(DatasetEvaluator):
    """AP and AR of boxes and masks, in percent.

    LIVECell's changes to COCO: small, medium and large are divided at 18² and 31² pixels (a cell of just that area
    counts in both, as in COCO); up to 2000 detections an image count, and AP is read at the last limit. For masks, a
    detection's area is its mask's. A true cell's area is the field "area" of its annotation, as in COCO; where records
    have none, its mask's.

    Args:
        dataset_name: registered; its records are the ground truth.
        max_dets: ascending limits on detections an image; one AR each.
        area_limits: ascending limits between area ranges, square pixels.
        use_cats: whether categories are told apart, and the numbers averaged over them; if not, all are one, as with
            LIVECell's useCats 0. With one category it makes no difference.
        output_dir: where instances_results.json, COCO's results format, goes; None writes nothing.

    Raises:
        ConfigError: limits that are not positive and ascending.
    """

    def __init__(
        self,
        dataset_name: str,
        max_dets: Sequence[int] = (100, 500, 2000),
        area_limits: Sequence[float] = (324, 961),
        use_cats: bool = True,
        output_dir: str | None = None,
    ) -> None:
        _check_ascending("TEST.CELL_COCO.MAX_DETS", max_dets)
        _check_ascending("TEST.CELL_COCO.AREA_LIMITS", area_limits)
        self._name = dataset_name
        self._summary = Summary(tuple(max_dets), area_names(area_limits))
        self._area_ranges = [(0, LARGEST), *pairwise([0, *area_limits, LARGEST])]
        self._use_cats = use_cats
        self._file = ResultsFile(Path(output_dir) / RESULTS_FILE) if output_dir else None
        self._images: ImageResults[dict[str, ByCategory]] = ImageResults(dataset_name)

    def reset(self) -> None:
        self._images.reset()
        if self._file:
            self._file.start()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Matches the predictions of each image; errors as of `add`."""
        for image, output in zip(inputs, outputs, strict=True):
            self.add(image["image_id"], Detections.of_instances(output["instances"]))

    def add(self, image_id: Hashable, detections: Detections) -> None:
        """Matches the detections of an image, such as a results file's.

        Raises:
            DatasetError: an image_id that is not the data set's; unusable ground truth.
        """
        truth = TrueCells.of(self._images.record(image_id), self._name)
        self._images.add(image_id, self._match(truth, detections))
        if self._file:
            self._file.write(self._with_original_categories(detections.to_results(image_id)))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"bbox": {name: percent}, "segm": {…}}; None on processes other than the first.

        - AP, AP50, AP75: mean precision over recalls, IoU thresholds (all of 0.50:0.05:0.95, or one) and categories.
        - APs, APm, APl: AP in each area range; with other than two limits, AP_0_50, AP_50_inf, ….
        - AR100, AR500, AR2000: recall at most so many detections an image; ARs, ARm, ARl: in each area range, at the last.
        - AFNR: average false negative ratio, 100 - AR at the last limit.
        - precision-IoU50 … IoU95 and recall-IoU50 …: at one IoU threshold, all areas, the last limit.
        - AP-X, AP50-X, AP75-X, AR2000-X, AFNR-X: of category X, where there are several and use_cats; and of cell type X,
          over its images alone, where records are of several. A record's type is its "cell_type", else what its file
          name has before _Phase_, in lower case, as LIVECell's.

        NaN where there is no ground truth of an area, category or type.

        Raises:
            DatasetError: an image_id is there twice; unusable ground truth.
        """
        gathered = self._images.gather()
        if self._file:
            self._file.finish()
        if gathered is None:
            return None
        records = [record for record, _ in gathered]
        nothing = Detections.of_results([], 0, 0)
        images = [result or self._match(TrueCells.of(record, self._name), nothing) for record, result in gathered]
        self._log_unusual(records, images)
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        for task in TASKS:
            results[task] = self._evaluate_task(records, [image[task] for image in images])
            self._log(task, results[task])
        return results

    def _match(self, truth: TrueCells, detections: Detections) -> dict[str, ByCategory]:
        matches: dict[str, ByCategory] = {task: {} for task in TASKS}
        for category in np.union1d(truth.categories, detections.categories).tolist() if self._use_cats else [ANY]:
            of_truth, of_detections = _of_category(truth, category), _of_category(detections, category)
            best = of_detections.best(self._summary.max_dets[-1])
            for task in TASKS:
                matches[task][category], _ = match(
                    overlaps(best, of_truth, task),
                    best.scores,
                    # A detection's area is its mask's where masks are matched.
                    best.boxes[:, 2] * best.boxes[:, 3] if task == "bbox" else areas_of(best.masks),
                    of_truth.areas,
                    of_truth.crowd,
                    self._area_ranges,
                )
        return matches

    def _evaluate_task(self, records: Sequence[dict[str, Any]], images: Sequence[ByCategory]) -> dict[str, float]:
        by_category = self._accumulate(images)
        values = self._summary.overall(list(by_category.values()))
        if len(by_category) > 1:
            for category, scores in by_category.items():
                values |= self._summary.of_group(self._category_name(category), [scores])
        types = [_cell_type(record) for record in records]
        found = sorted({kind for kind in types if kind is not None})
        for kind in found if len(found) > 1 else ():
            of_type = [image for image, its_type in zip(images, types, strict=True) if its_type == kind]
            values |= self._summary.of_group(kind, list(self._accumulate(of_type).values()))
        return values

    def _accumulate(self, images: Sequence[ByCategory]) -> dict[int, Scores]:
        """By category with ground truth, as one without has neither AP nor AR; something undefined if there is none."""
        found = sorted({category for image in images for category, matches in image.items() if matches.cells[0]})
        return {
            category: accumulate(
                [image[category] for image in images if category in image], len(self._area_ranges), self._summary.max_dets
            )
            for category in found or [ANY]
        }

    def _category_name(self, category: int) -> str:
        names = MetadataCatalog.get(self._name).get("thing_classes", [])
        return names[category] if category < len(names) else str(category)

    def _log(self, task: str, values: dict[str, float]) -> None:
        overall = {name: value for name, value in values.items() if "-" not in name}
        logger.info("%s, %s:\n%s", self._name, task, create_small_table(overall))
        metrics = self._summary.group_metrics
        groups = [name.removeprefix("AP-") for name in values if name.startswith("AP-")]
        if groups:
            rows = [[group, *(values[f"{metric}-{group}"] for metric in metrics)] for group in groups]
            logger.info("%s, %s:\n%s", self._name, task, tabulate(rows, ["", *metrics], "pipe", floatfmt=".3f"))

    def _log_unusual(self, records: Sequence[dict[str, Any]], images: Sequence[dict[str, ByCategory]]) -> None:
        limit = self._summary.max_dets[-1]
        matches = [list(image["bbox"].values()) for image in images]
        if not any(of_category.cells[0] for image in matches for of_category in image):
            logger.warning("%s: no ground truth, so every number is NaN", self._name)
        elif not any(len(of_category.scores) for image in matches for of_category in image):
            logger.warning("%s: the model detects nothing, so every number is 0", self._name)
        # The limit holds for each category.
        most = [max((int(of_category.cells[0]) for of_category in image), default=0) for image in matches]
        if max(most, default=0) > limit:
            message = "%s: %d images hold more cells (up to %d) than the %d detections an image that count"
            logger.warning(message, self._name, sum(count > limit for count in most), max(most), limit)
        untyped = [record["image_id"] for record in records if _cell_type(record) is None]
        if 0 < len(untyped) < len(records):
            message = "%s: %d of %d images, the first %r, have no cell type; they count in the totals alone"
            logger.warning(message, self._name, len(untyped), len(records), untyped[0])

    def _with_original_categories(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With the category ids of the data set's own annotation file."""
        to_contiguous = MetadataCatalog.get(self._name).get("thing_dataset_id_to_contiguous_id", {})
        to_original = {contiguous: original for original, contiguous in to_contiguous.items()}
        return [{**r, "category_id": to_original.get(r["category_id"], r["category_id"])} for r in results]


def _of_category(cells: Any, category: int) -> Any:
    """The cells of a category; of any, those of lower categories first, as pycocotools has them without useCats."""
    if category == ANY:
        return cells[np.argsort(cells.categories, kind="stable")]
    return cells[np.flatnonzero(cells.categories == category)]


def _cell_type(record: Mapping[str, Any]) -> str | None:
    name = _LIVECELL_NAME.match(PurePath(record["file_name"]).name)
    return record.get("cell_type") or (name[1].lower() if name else None)


def _check_ascending(key: str, values: Sequence[float]) -> None:
    if not values or not all(a < b for a, b in pairwise([0, *values])):
        raise ConfigError(f"{key} {tuple(values)}: expected positive numbers in ascending order")
