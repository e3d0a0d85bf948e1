"""What goes into a report, read from the folder of a finished pipeline. Nothing is computed that training computed."""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupre_d2.evaluation.cell_coco import RESULTS_FILE
from cupre_d2.report.charts import Chart
from cupre_d2.report.curves import read_metrics, recall_charts, training_charts
from cupre_d2.report.detections import Evaluated, read_evaluation
from cupre_d2.report.pictures import Picture, make_picture

MOST_PICTURES = 12
# Bytes of all pictures together; with it the file stays below 10 MB, which a mail takes.
PICTURE_BYTES = 8_000_000
DASH = "–"

# Numbers for the first look: not those of one class, cell type or IoU ("AP-a172", "F1_75").
_HEADLINE = re.compile(r"A[PR]\w*|[^_-]+")


@dataclass(frozen=True)
class Row:
    """The metrics of a data set and task, as text."""

    dataset: str
    task: str
    values: list[str]


@dataclass(frozen=True)
class Table:
    """Rows that share their columns."""

    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class StagePart:
    """A stage: its name, trainer, iterations, time as text, charts, and config as YAML."""

    name: str
    trainer: str
    iterations: int
    time: str
    charts: list[Chart]
    config: str


@dataclass(frozen=True)
class DatasetPart:
    """A data set that the last stage was evaluated on.

    Attributes:
        images: how many it has.
        pictures: of the worst images, the worst first.
        cells: true cells in all images.
        found, false: cells found and detections that found none, in all images, at each threshold on the score.
    """

    name: str
    images: int
    pictures: list[Picture]
    cells: int
    found: list[int]
    false: list[int]
    charts: list[Chart]


@dataclass(frozen=True)
class Report:
    """Attributes: headline and details are tables of the last stage's metrics; command is what to type for a rerun."""

    title: str
    headline: list[Table]
    details: list[Table]
    datasets: list[DatasetPart]
    stages: list[StagePart]
    time: str
    device: str
    command: str
    versions: dict[str, str]


def collect(output_dir: Path) -> Report:
    """
    Args:
        output_dir: of a finished pipeline, with results.json; its data sets are registered.

    Raises:
        OSError, KeyError, ValueError: a file is missing or not what the pipeline wrote.
        DatasetError: a data set or an image cannot be used.
    """
    results = json.loads((output_dir / "results.json").read_text())
    folders = [output_dir / f"{number}_{stage['name']}" for number, stage in enumerate(results["stages"], start=1)]
    return Report(
        title=output_dir.resolve().name,
        headline=tables(results["metrics"], is_headline=True),
        details=tables(results["metrics"], is_headline=False),
        datasets=_datasets(folders[-1] / "inference", results["config"]),
        stages=[_stage(stage, folder) for stage, folder in zip(results["stages"], folders, strict=True)],
        time=duration(results["seconds"]),
        device=results["device"],
        command=shlex.join(["python", *results["command"]]),
        versions=results["versions"],
    )


def tables(metrics: Mapping[str, Mapping[str, Mapping[str, float | None]]], is_headline: bool) -> list[Table]:
    """Metrics {data set: {task: {name: percent}}} as tables, one for all that have the same names."""
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for dataset, tasks in metrics.items():
        for task, values in tasks.items():
            chosen = {name: value for name, value in values.items() if bool(_HEADLINE.fullmatch(name)) == is_headline}
            if chosen:
                row = Row(dataset, task, [percent(value) for value in chosen.values()])
                grouped.setdefault(tuple(chosen), []).append(row)
    return [Table(list(columns), rows) for columns, rows in grouped.items()]


def percent(value: float | None) -> str:
    """With one decimal; a dash for what is not defined, which results.json has as null."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.1f}"


def duration(seconds: float) -> str:
    """In hours, minutes and seconds, the two largest that are not 0."""
    hours, minutes, rest = int(seconds) // 3600, int(seconds) // 60 % 60, int(seconds) % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.0f} s"


def _stage(stage: Mapping[str, Any], folder: Path) -> StagePart:
    config = folder / "config.yaml"
    return StagePart(
        name=stage["name"],
        trainer=stage["trainer"],
        iterations=stage["iterations"],
        time=duration(stage["seconds"]),
        charts=training_charts(read_metrics(folder / "metrics.json")),
        config=config.read_text() if config.is_file() else "",
    )


def _datasets(inference: Path, config: Mapping[str, Any]) -> list[DatasetPart]:
    """Of those data sets of DATASETS.TEST whose detections are there."""
    files = {name: inference / name / RESULTS_FILE for name in config["DATASETS"]["TEST"]}
    files = {name: file for name, file in files.items() if file.is_file()}
    if not files:
        return []
    keep = max(1, MOST_PICTURES // len(files))
    use_cats = config["TEST"]["CELL_COCO"]["USE_CATS"]
    evaluated = [read_evaluation(file, name, use_cats, keep) for name, file in files.items()]
    return [dataset_part(one, PICTURE_BYTES // len(files)) for one in evaluated]


def dataset_part(evaluated: Evaluated, budget: int) -> DatasetPart:
    """With as many pictures as have room in so many bytes; raises DatasetError where an image cannot be read."""
    tally = evaluated.tally
    pictures = within([make_picture(image) for image in evaluated.worst], budget)
    charts = recall_charts(tally)
    return DatasetPart(evaluated.name, evaluated.images, pictures, tally.cells, tally.found, tally.false, charts)


def within(pictures: Sequence[Picture], budget: int) -> list[Picture]:
    """The first pictures that have room in so many bytes; one of crowded cells may take a megabyte."""
    kept = []
    for picture in pictures:
        budget -= picture.size
        if budget < 0:
            break
        kept.append(picture)
    return kept
