"""The numbers of the table: the DSB2018 score by kind of cells, and what the clusters look like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from detectron2.config import CfgNode

from cupre_d2.data import get_records
from cupre_d2.engine.results import Metrics
from cupre_d2.errors import ConfigError
from cupre_d2.experiments.attempts import broken
from cupre_d2.experiments.deep_clustering.grid import Cell
from cupre_d2.experiments.tasks import Task
from cupre_d2.report.sections import read_metrics

CLUSTERS = "clusters/"
# The paper's three columns, MAP (the DSB2018 score, mean over images): type 1, the others, and all.
PARTS = ("known", "unknown", "all")


@dataclass(frozen=True)
class EvaluatedSets:
    """What is evaluated.

    Attributes:
        known: data sets that are not clustered.
        unknown: the one that is; the paper clusters its test images too.
        images: how many each has.
    """

    known: tuple[str, ...]
    unknown: str
    images: Mapping[str, int]

    @classmethod
    def of(cls, before: CfgNode, cfg: CfgNode) -> "EvaluatedSets":
        """Of the clustering stage's config and that of the stage before it.

        Raises:
            ConfigError: no known ones, not one unknown, metrics that the table needs are missing, or the two stages differ.
        """
        unknown = tuple(name for name in cfg.DATASETS.TEST if name in cfg.DATASETS.UNLABELED)
        known = tuple(name for name in cfg.DATASETS.TEST if name not in unknown)
        if not known or len(unknown) != 1:
            raise ConfigError(
                f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: expected one data set that is clustered (DATASETS.UNLABELED) "
                "and others that are not"
            )
        if "labels" not in cfg.TEST.EVALUATORS or "cell_coco" not in cfg.TEST.EVALUATORS:
            raise ConfigError(f"TEST.EVALUATORS {tuple(cfg.TEST.EVALUATORS)}: expected labels and cell_coco")
        for name, key in (("DATASETS", "TEST"), ("TEST", "EVALUATORS")):
            if tuple(before[name][key]) != tuple(cfg[name][key]):
                raise ConfigError(
                    f"{name}.{key} {tuple(before[name][key])}: of the network before clustering; expected what is evaluated "
                    f"after it, {tuple(cfg[name][key])}"
                )
        return cls(known, unknown[0], {name: len(get_records(name)) for name in cfg.DATASETS.TEST})

    def names(self, part: str) -> tuple[str, ...]:
        return {"known": self.known, "unknown": (self.unknown,), "all": (*self.known, self.unknown)}[part]


@dataclass(frozen=True)
class Row:
    """A network with its numbers.

    Attributes:
        cell: None for the baseline, which no clustering has touched.
        test: {data set: {"bbox", "segm" or "labels": {name: percent}}}.
        statistics: of the clusters, see `cluster_statistics`; empty for the baseline.
    """

    cell: Cell | None
    sets: EvaluatedSets
    test: Mapping[str, Metrics]
    statistics: Mapping[str, float]

    def value(self, part: str) -> float:
        """MAP in percent of one of PARTS: the mean over its images."""
        names = self.sets.names(part)
        total = sum(self.sets.images[name] for name in names)
        return sum(self.test[name]["labels"]["DSB2018"] * self.sets.images[name] for name in names) / total

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        cell = {"algorithm": "baseline"} if self.cell is None else vars(self.cell)
        return {**cell, "MAP": {part: self.value(part) for part in PARTS}, "statistics": self.statistics, "test": self.test}


def read_row(cell: Cell | None, task: Task, sets: EvaluatedSets) -> Row:
    """Of a finished task.

    Raises:
        TaskError: what it has left cannot be used.
    """
    test = {name: task.metrics(name) for name in sets.names("all")}
    if missing := [name for name, metrics in test.items() if "DSB2018" not in metrics.get("labels", {})]:
        raise broken(task.stage_folder / "stage.json", f"no DSB2018 score of {missing[0]}")
    logged = read_metrics(task.stage_folder / "metrics.json") if cell else []
    rounds = [row for row in logged if f"{CLUSTERS}entropy" in row]
    if cell and not rounds:
        raise broken(task.stage_folder / "metrics.json", "no statistics of clusters")
    found = rounds[-1] if rounds else {}
    statistics = {key.removeprefix(CLUSTERS): value for key, value in found.items() if key.startswith(CLUSTERS)}
    return Row(cell, sets, test, statistics)


def groups(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """The rows of all seeds by (algorithm, clusters), in order; without the baseline."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.cell is not None:
            found.setdefault((row.cell.algorithm, row.cell.clusters), []).append(row)
    return found


def gain(rows: Sequence[Row], baseline: Row, part: str) -> float:
    """Mean MAP less the baseline's, percent points; its spread is that of the rows, as there is one baseline."""
    return fmean(row.value(part) for row in rows) - baseline.value(part)


def mean_statistic(rows: Sequence[Row], name: str) -> float:
    """Of the clusters, over seeds; NaN where the samples have no types."""
    values = [row.statistics[name] for row in rows if name in row.statistics]
    return fmean(values) if values else float("nan")
