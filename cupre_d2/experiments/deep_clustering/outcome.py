"""What the table's runs have come to, of which its pages are made."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from detectron2.config import CfgNode

from cupre_d2.data import get_records
from cupre_d2.experiments import results
from cupre_d2.experiments.deep_clustering.grid import Cell, Experiment
from cupre_d2.experiments.deep_clustering.scores import EvaluatedSets, Row
from cupre_d2.experiments.tasks import Task

# Pictures of more images are too small to see.
MOST_IMAGES = 4


@dataclass(frozen=True)
class Outcome(results.Outcome[Experiment]):
    """
    Attributes:
        cfg: of a clustering stage.
        baseline, rows: the numbers.
        tasks: of the baseline (None) and of each row's cell.
    """

    cfg: CfgNode
    baseline: Row
    rows: list[Row]
    tasks: Mapping[Cell | None, Task]

    @property
    def sets(self) -> EvaluatedSets:
        return self.baseline.sets

    @property
    def use_cats(self) -> bool:
        """Whether categories are told apart."""
        return self.cfg.TEST.CELL_COCO.USE_CATS

    def before_and_after(self) -> dict[str, Task]:
        """The baseline, and of each algorithm the most clusters with the first seed."""
        grid = self.experiment.grid
        shown = [Cell(algorithm, max(grid.clusters), grid.seeds[0]) for algorithm in grid.algorithms]
        after = {f"{cell.algorithm}, k {cell.clusters}": self.tasks[cell] for cell in shown}
        return {"baseline": self.tasks[None]} | after


def choose_by_type(dataset: str) -> list[Hashable]:
    """Ids of up to four images: of each type, the commonest first, the one with the median number of cells."""
    return of_each_type(get_records(dataset))


def of_each_type(records: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """As `choose_by_type`.

    >>> records = [{"image_id": n, "cell_type": "ab"[n > 2], "annotations": [None] * n} for n in range(5)]
    >>> of_each_type(records)
    [1, 4]
    """

    def cell_type(record: Mapping[str, Any]) -> str:
        return record.get("cell_type", "")

    groups = [list(found) for _, found in groupby(sorted(records, key=cell_type), key=cell_type)]
    groups.sort(key=lambda found: -len(found))
    ordered = [sorted(found, key=lambda record: len(record["annotations"])) for found in groups[:MOST_IMAGES]]
    return [found[len(found) // 2]["image_id"] for found in ordered]
