"""What an experiment runs as processes: stages that several pipelines share, and evaluations of their checkpoints."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from cupre_d2.commands import entry
from cupre_d2.config import default_config
from cupre_d2.data import get_records
from cupre_d2.engine.eval_only import FOLDER
from cupre_d2.engine.pipeline import comparable, trainer_class
from cupre_d2.engine.results import Metrics, StageRecord, broken
from cupre_d2.engine.stages import Stage
from cupre_d2.errors import ConfigError
from cupre_d2.evaluation.cell_coco import RESULTS_FILE
from cupre_d2.report import REPORT
from cupre_d2.report.sections import read_metrics

WEIGHTS = ("WEIGHTS", "BACKBONE_WEIGHTS")


@dataclass(frozen=True)
class Task:
    """A stage to train in a folder of its own, named by what it is trained from.

    Attributes:
        key: `<stage>-<hash>` of what its config says beyond the defaults, and of the tasks before it.
        config: YAML of the stage, complete; its OUTPUT_DIR is `folder`.
        needs: keys of the tasks whose checkpoints it starts from.
        work: iterations.
    """

    key: str
    stage: str
    folder: Path
    config: str
    needs: tuple[str, ...]
    work: int

    @property
    def kind(self) -> str:
        return self.stage

    @property
    def config_file(self) -> Path:
        return self.folder / f"{self.stage}.yaml"

    @property
    def stage_folder(self) -> Path:
        return self.folder / f"1_{self.stage}"

    @property
    def checkpoint(self) -> Path:
        return self.stage_folder / "model_final.pth"

    @property
    def log(self) -> Path:
        return self.folder / "output.txt"

    @property
    def timing(self) -> Path:
        return self.folder / "timing.json"

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config, its tuples as lists."""
        return yaml.safe_load(self.config)

    def record(self) -> StageRecord | None:
        """What was measured when it was finished; errors, here and below, as of `StageRecord.read`."""
        return StageRecord.read(self.stage_folder)

    def finished(self) -> bool:
        return self.record() is not None

    def commit(self) -> str:
        """Of the code that finished it; "" if it is not finished."""
        record = self.record()
        return record.commit if record else ""

    def seconds(self) -> float | None:
        """From the start to the end of its process, all attempts; None if it is not finished.

        At least those of training, which is all that is known of attempts that nobody timed.
        """
        record = self.record()
        return None if record is None else max(record.seconds, read_seconds(self.timing) or 0.0)

    def metrics(self, dataset: str) -> Metrics:
        """{task: {metric: value}} of a finished task on one of its own data sets; raises ResultsError if it has none."""
        record = self.record()
        assert record is not None
        return _of_dataset(record.metrics, dataset, self.stage_folder / "stage.json")

    def score(self) -> float:
        """By TEST.BEST, of a finished task, the higher the better; -infinity where that is not defined."""
        best = self.settings["TEST"]["BEST"]
        dataset = best["DATASET"] or next(iter(self.settings["DATASETS"]["TEST"]))
        value = self.metrics(dataset).get(best["TASK"], {}).get(best["METRIC"])
        if value is None or math.isnan(value):
            return -math.inf
        return value if best["HIGHER"] else -value

    def curve(self, dataset: str, task: str, metric: str) -> list[tuple[int, float, float]]:
        """What a finished task reached each time it was evaluated, the last time at least: (iterations, epochs, value).

        An epoch is as many images as DATASETS.TRAIN has. What is not defined is left out. Raises DatasetError where its
        training images cannot be listed.
        """
        logged = read_metrics(self.stage_folder / "metrics.json")
        found = {row["iteration"] + 1: row.get(f"{dataset}/{task}/{metric}") for row in logged}
        found[self.work] = self.metrics(dataset).get(task, {}).get(metric)
        images = sum(len(get_records(name)) for name in self.settings["DATASETS"]["TRAIN"])
        pace = self.settings["SOLVER"]["IMS_PER_BATCH"] / images
        return [
            (iterations, iterations * pace, value)
            for iterations, value in sorted(found.items())
            if value is not None and math.isfinite(value)
        ]

    def detections(self, dataset: str) -> Path:
        """COCO's results format, on one of its own data sets."""
        return self.stage_folder / "inference" / dataset / RESULTS_FILE

    def prepare(self) -> list[str]:
        """Writes the config; the command line that trains it, which resumes, and can be run by hand."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(self.config)
        return [*entry(), "train", "--config-file", str(self.config_file)]


@dataclass(frozen=True)
class EvaluationTask:
    """The checkpoint of a finished task on another data set; done once, then read from the task's folder."""

    task: Task
    dataset: str
    needs = ()
    work = 1

    @property
    def key(self) -> str:
        return f"{self.task.key} on {self.dataset}"

    @property
    def kind(self) -> str:
        return f"{self.task.stage} on {self.dataset}"

    @property
    def folder(self) -> Path:
        return self.task.folder / self.dataset

    @property
    def log(self) -> Path:
        return self.task.folder / f"{self.dataset}.txt"

    @property
    def timing(self) -> Path:
        return self.folder / "timing.json"

    @property
    def _results(self) -> Path:
        return self.folder / "evaluation.json"

    def finished(self) -> bool:
        return self._results.is_file()

    def commit(self) -> str:
        """Of the code that did it; raises ResultsError where its file is broken."""
        return str(read_json(self._results).get("commit", "unknown"))

    def seconds(self) -> float | None:
        """From the start to the end of its process, all attempts; None if it is not finished or nobody timed it."""
        return read_seconds(self.timing) if self.finished() else None

    def prepare(self) -> list[str]:
        command = [*self.task.prepare(), "--eval-only", "OUTPUT_DIR", str(self.folder)]
        return [*command, "MODEL.WEIGHTS", str(self.task.checkpoint), "DATASETS.TEST", f"('{self.dataset}',)"]

    def detections(self) -> Path:
        """COCO's results format."""
        return self.folder / FOLDER / "inference" / self.dataset / RESULTS_FILE

    def metrics(self) -> Metrics:
        """{task: {metric: value}}; raises ResultsError if its file is broken."""
        return _of_dataset(read_json(self._results).get("metrics"), self.dataset, self._results)


AnyTask: TypeAlias = Task | EvaluationTask


def _of_dataset(metrics: object, dataset: str, file: Path) -> Metrics:
    values = metrics.get(dataset) if isinstance(metrics, dict) else None
    if not isinstance(values, dict) or not all(isinstance(of_task, dict) for of_task in values.values()):
        raise broken(file, f"no metrics on {dataset}")
    return values


def read_seconds(timing: Path) -> float | None:
    """What a task took so far, all attempts; None before the first has ended; raises ResultsError for a broken file."""
    if not timing.is_file():
        return None
    content = read_json(timing)
    try:
        return float(content["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise broken(timing, error) from error


def read_json(file: Path) -> dict:
    """An object that a task has left in its folder; raises ResultsError if the file is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise broken(file, error) from error
    if not isinstance(content, dict):
        raise broken(file, f"a {type(content).__name__}; expected an object")
    return content


class TaskList:
    """All tasks of an experiment, their folders below `root`; adding a pipeline adds those of its stages that are new."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tasks: dict[str, Task] = {}

    def add(self, stages: Sequence[Stage]) -> Task:
        """Adds a pipeline; returns its last task; raises CupreError as the trainer's `plan`, and as `_check_defaults`."""
        made: dict[str, Task] = {}
        for stage in stages:
            task = self._task(stage, made)
            made[str(stage.final_checkpoint)] = self.tasks.setdefault(task.key, task)
        return made[str(stages[-1].final_checkpoint)]

    def with_needs(self, wanted: Iterable[Task]) -> dict[str, Task]:
        """By key, tasks and all that they start from, what is needed first."""
        found: dict[str, Task] = {}
        for task in wanted:
            found |= self.with_needs(self.tasks[key] for key in task.needs) | {task.key: task}
        return found

    def _task(self, stage: Stage, made: Mapping[str, Task]) -> Task:
        cfg = stage.cfg.clone()
        cfg.defrost()
        # A key that a later version adds must not make finished work unknown.
        settings = {key: value for key, value in comparable(cfg).items() if _defaults().get(key) != value}
        # Of what one folder may change from run to run, what its results show.
        settings["TEST.EVAL_PERIOD"] = cfg.TEST.EVAL_PERIOD
        needs = []
        for name in WEIGHTS:
            if before := made.get(cfg.MODEL[name]):
                needs.append(before.key)
                settings[f"MODEL.{name}"] = before.key
                cfg.MODEL[name] = str(before.checkpoint)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        key = f"{stage.name}-{digest}"
        cfg.OUTPUT_DIR = str(self.root / key)
        work = self.tasks[key].work if key in self.tasks else trainer_class(stage).plan(stage.cfg)
        task = Task(key, stage.name, self.root / key, cfg.dump(), tuple(dict.fromkeys(needs)), work)
        _check_defaults(task)
        return task


def _check_defaults(task: Task) -> None:
    """Raises ConfigError if it was trained by a version with another default; one that had no such key is as good."""
    file = task.stage_folder / "config.yaml"
    if not file.is_file():
        return
    before = comparable(yaml.safe_load(file.read_text()))
    now = comparable({**task.settings, "OUTPUT_DIR": str(task.stage_folder)})
    # Where it starts from is in its name; paths change when folders are moved.
    for key in now.keys() & before.keys() - {f"MODEL.{name}" for name in WEIGHTS}:
        if now[key] != before[key]:
            raise ConfigError(f"{file}: trained with {key} {before[key]}, which is {now[key]} now; choose another --output")


@cache
def _defaults() -> dict[str, Any]:
    return comparable(default_config())
