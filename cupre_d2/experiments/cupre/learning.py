"""How fine-tuning went: mask AP on the validation images against epochs."""

import math
from dataclasses import dataclass

import yaml

from cupre_d2.data.few_shot import get_records
from cupre_d2.experiments.tasks import Task
from cupre_d2.report.sections import read_metrics


@dataclass(frozen=True)
class Point:
    """
    Attributes:
        iterations, epochs: of fine-tuning; an epoch is as many images as are annotated.
        ap: percent.
    """

    iterations: int
    epochs: float
    ap: float


def read_curve(task: Task, dataset: str) -> tuple[Point, ...]:
    """What a finished fine-tuning reached on the validation images, each time it was evaluated; the last time at least.

    Raises:
        TaskError: its record is broken.
        DatasetError: its training images cannot be listed.
    """
    found = {
        row["iteration"] + 1: row.get(f"{dataset}_val/segm/AP") for row in read_metrics(task.stage_folder / "metrics.json")
    }
    found[task.iterations] = task.metrics(f"{dataset}_val")["segm"].get("AP")
    config = yaml.safe_load(task.config)
    images = sum(len(get_records(name)) for name in config["DATASETS"]["TRAIN"])
    pace = config["SOLVER"]["IMS_PER_BATCH"] / images
    return tuple(
        Point(iterations, iterations * pace, ap)
        for iterations, ap in sorted(found.items())
        if ap is not None and math.isfinite(ap)
    )
