"""Stages as tasks that several pipelines share: two stages of one config and one start are one task."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cupre_d2.engine.eval_only import FOLDER
from cupre_d2.engine.pipeline import comparable, trainer_class
from cupre_d2.engine.results import Metrics, StageRecord, broken
from cupre_d2.engine.stages import Stage
from cupre_d2.evaluation.cell_coco import RESULTS_FILE
from cupre_d2.experiments.attempts import read_json, read_seconds
from cupre_d2.report import REPORT

TRAIN_NET = Path(__file__).parents[2] / "tools" / "train_net.py"
WEIGHTS = ("WEIGHTS", "BACKBONE_WEIGHTS")


@dataclass(frozen=True)
class Task:
    """A stage to train in a folder of its own, named by what it is trained from.

    Attributes:
        key: `<stage>-<hash>` of the config and of the tasks before it.
        config: YAML of the stage, complete; its OUTPUT_DIR is `folder`.
        needs: keys of the tasks whose checkpoints it starts from.
    """

    key: str
    stage: str
    trainer: str
    folder: Path
    config: str
    needs: tuple[str, ...]
    iterations: int

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

    @property
    def kind(self) -> str:
        return self.stage

    @property
    def work(self) -> int:
        return self.iterations

    @property
    def size(self) -> str:
        return f"{self.iterations} iterations"

    def record(self) -> StageRecord | None:
        """What was measured when it was finished; errors as of `StageRecord.read`."""
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
        """{"bbox" or "segm": {name: percent}} of a finished task on one of its own data sets.

        Raises:
            ResultsError: it has none.
        """
        record = self.record()
        assert record is not None
        return _of_dataset(record.metrics, dataset, self.stage_folder / "stage.json")

    def detections(self, dataset: str) -> Path:
        """COCO's results format, on one of its own data sets."""
        return detections_file(self.stage_folder, dataset)

    def prepare(self) -> list[str]:
        """Writes the config; the command line that trains it, which resumes, and can be run by hand."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(self.config)
        return [sys.executable, str(TRAIN_NET), "--config-file", str(self.config_file)]


@dataclass(frozen=True)
class Evaluation:
    """The checkpoint of a finished task on another data set; done once, then read from the task's folder."""

    task: Task
    dataset: str

    @property
    def key(self) -> str:
        return f"{self.task.key} on {self.dataset}"

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

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
    def kind(self) -> str:
        return f"{self.task.stage} on {self.dataset}"

    @property
    def work(self) -> int:
        return 1

    @property
    def size(self) -> str:
        return ""

    @property
    def _results(self) -> Path:
        return self.folder / "evaluation.json"

    def finished(self) -> bool:
        return self._results.is_file()

    def commit(self) -> str:
        """Of the code that did it."""
        return str(read_json(self._results).get("commit", "unknown"))

    def seconds(self) -> float | None:
        """From the start to the end of its process, all attempts; None if it is not finished or nobody timed it."""
        return read_seconds(self.timing) if self.finished() else None

    def prepare(self) -> list[str]:
        command = [*self.task.prepare(), "--eval-only", "OUTPUT_DIR", str(self.folder)]
        return [*command, "MODEL.WEIGHTS", str(self.task.checkpoint), "DATASETS.TEST", f"('{self.dataset}',)"]

    @property
    def detections(self) -> Path:
        """COCO's results format."""
        return detections_file(self.folder / FOLDER, self.dataset)

    def metrics(self) -> Metrics:
        """{"bbox" or "segm": {name: percent}}.

        Raises:
            ResultsError: the results are broken.
        """
        return _of_dataset(read_json(self._results).get("metrics"), self.dataset, self._results)


def detections_file(stage_folder: Path, dataset: str) -> Path:
    return stage_folder / "inference" / dataset / RESULTS_FILE


def _of_dataset(metrics: object, dataset: str, file: Path) -> Metrics:
    values = metrics.get(dataset) if isinstance(metrics, dict) else None
    if not isinstance(values, dict) or not all(isinstance(values.get(task), dict) for task in ("bbox", "segm")):
        raise broken(file, f"no metrics of boxes and masks on {dataset}")
    return values


class TaskList:
    """All tasks of an experiment; adding a pipeline adds those of its stages that are not there yet.

    Args:
        root: the tasks' folders go below it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tasks: dict[str, Task] = {}
        self._planned: dict[str, int] = {}

    def add(self, stages: Sequence[Stage]) -> Task:
        """Adds a pipeline; returns its last task.

        Raises:
            CupreError: as the trainer's `plan`, before anything trains.
        """
        made: dict[str, Task] = {}
        for stage in stages:
            made[str(stage.final_checkpoint)] = self._task(stage, made)
        last = made[str(stages[-1].final_checkpoint)]
        # What no later stage starts from is of no use to the last.
        for task in _with_needs([last], {task.key: task for task in made.values()}):
            self.tasks.setdefault(task.key, task)
        return last

    def with_needs(self, wanted: Iterable[Task]) -> list[Task]:
        """Tasks and all that they start from, each once, what is needed first."""
        return _with_needs(wanted, self.tasks)

    def _task(self, stage: Stage, made: dict[str, Task]) -> Task:
        cfg = stage.cfg.clone()
        cfg.defrost()
        # Of what one folder may change from run to run, what its results show.
        settings = comparable(cfg) | {"TEST.EVAL_PERIOD": cfg.TEST.EVAL_PERIOD}
        needs = []
        for name in WEIGHTS:
            if before := made.get(cfg.MODEL[name]):
                needs.append(before.key)
                settings[f"MODEL.{name}"] = before.key
                cfg.MODEL[name] = str(before.checkpoint)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        key = f"{stage.name}-{digest}"
        cfg.OUTPUT_DIR = str(self.root / key)
        if key not in self._planned:
            self._planned[key] = trainer_class(stage).plan(stage.cfg)
        return Task(
            key=key,
            stage=stage.name,
            trainer=cfg.TRAINER,
            folder=self.root / key,
            config=cfg.dump(),
            needs=tuple(dict.fromkeys(needs)),
            iterations=self._planned[key],
        )


def _with_needs(wanted: Iterable[Task], by_key: Mapping[str, Task]) -> list[Task]:
    found: dict[str, Task] = {}
    for task in wanted:
        found |= {one.key: one for one in _with_needs([by_key[key] for key in task.needs], by_key)} | {task.key: task}
    return list(found.values())
