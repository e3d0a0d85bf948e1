"""What the table's runs have come to, of which its pages are made."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from cupre_d2.data import get_records
from cupre_d2.experiments.deep_clustering.grid import Experiment
from cupre_d2.experiments.deep_clustering.scores import Row, TestSets
from cupre_d2.experiments.results import Origin, beside, save
from cupre_d2.experiments.tasks import Task

# Pictures of more images are too small to see.
MOST_IMAGES = 4


@dataclass(frozen=True)
class Outcome:
    """A finished experiment.

    Attributes:
        cfg: of a clustering stage.
        results: path of what it leaves, without a suffix.
        baseline, rows: the numbers.
        tasks: of the baseline (None) and of each row's cell.
    """

    experiment: Experiment
    cfg: CfgNode
    origin: Origin
    results: Path
    baseline: Row
    rows: list[Row]
    tasks: Mapping[Any, Task]

    @property
    def sets(self) -> TestSets:
        return self.baseline.sets

    @property
    def use_cats(self) -> bool:
        """Whether categories are told apart."""
        return self.cfg.TEST.CELL_COCO.USE_CATS

    def beside(self, ending: str) -> Path:
        """A file whose name begins as all of this experiment's do."""
        return beside(self.results, ending)

    def save(self) -> None:
        """Every number, as JSON."""
        save(self.results, self.origin, self.experiment.identity(), [row.plain() for row in (self.baseline, *self.rows)])

    def before_and_after(self) -> dict[str, Task]:
        """The baseline, and of each algorithm the most clusters with the first seed."""
        grid = self.experiment.grid
        shown = [
            row.cell
            for row in self.rows
            if row.cell and (row.cell.clusters, row.cell.seed) == (max(grid.clusters), grid.seeds[0])
        ]
        return {"baseline": self.tasks[None]} | {f"{cell.algorithm}, k {cell.clusters}": self.tasks[cell] for cell in shown}


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
