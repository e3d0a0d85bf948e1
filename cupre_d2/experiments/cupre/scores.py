"""The numbers of an experiment: what is chosen on validation images, what is read on test images, and their spread."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cupre_d2.engine.results import Metrics
from cupre_d2.experiments.cupre.grid import Cell
from cupre_d2.experiments.cupre.learning import Point
from cupre_d2.experiments.tasks import Task

# What decides between learning rates.
DECIDING = ("segm", "AP")


@dataclass(frozen=True)
class Row:
    """A cell with its numbers.

    Attributes:
        validation, test: {"bbox" or "segm": {name: percent}}.
        curve: mask AP on the validation images while it was fine-tuned.
    """

    cell: Cell
    validation: Metrics
    test: Metrics
    curve: tuple[Point, ...] = ()

    def value(self, task: str, metric: str) -> float:
        """Percent, on the test images; NaN where it is not defined."""
        value = self.test[task].get(metric)
        return float("nan") if value is None else value

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        numbers = {"validation": self.validation, "test": self.test}
        return {**vars(self.cell), **numbers, "validation_curve": [vars(point) for point in self.curve]}


def choose(dataset: str, tasks: Mapping[Cell, Task]) -> dict[tuple[str, float], float]:
    """The learning rate of each (arm, percent) with the best mask AP on the validation images; of equal ones the lowest."""
    best: dict[tuple[str, float], tuple[float, float]] = {}
    for cell, task in sorted(tasks.items(), key=lambda item: item[0].learning_rate):
        score = validation(dataset, task)[DECIDING[0]].get(DECIDING[1])
        score = -1.0 if score is None or math.isnan(score) else score
        key = (cell.arm, cell.percent)
        if key not in best or score > best[key][0]:
            best[key] = (score, cell.learning_rate)
    return {key: rate for key, (_, rate) in best.items()}


def validation(dataset: str, task: Task) -> Metrics:
    """What a finished fine-tuning reached on the validation images; raises TaskError where that is broken."""
    return task.metrics(f"{dataset}_val")


def paired(rows: Sequence[Row], arm: str, other: str, task: str, metric: str) -> list[float]:
    """Differences arm - other between runs of the same fraction and seed, percent points."""
    by_pair = {(row.cell.arm, row.cell.percent, row.cell.seed): row.value(task, metric) for row in rows}
    pairs = [(percent, seed) for name, percent, seed in by_pair if name == arm]
    return [
        by_pair[arm, percent, seed] - by_pair[other, percent, seed]
        for percent, seed in pairs
        if (other, percent, seed) in by_pair
    ]
