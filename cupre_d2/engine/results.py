"""What a pipeline leaves behind for people and programs: results.json and a table."""

import json
import math
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from cupre_d2.errors import ResultsError
from cupre_d2.evaluation.build import PERCENT, as_text, tasks, unit_of
from cupre_d2.evaluation.cell_coco import TASKS as COCO_TASKS
from cupre_d2.files import write_text

TABLE_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR500", "AR2000")
DETECTRON2 = ("detectron2", "sal-detectron2")
DISTRIBUTIONS = ("cupre_d2", "torch", "torchvision", "numpy", "pycocotools", *DETECTRON2)
ROOT = Path(__file__).parents[2]
# What decides results, in a checkout.
CODE = ("cupre_d2", "configs", "tools")

# By meta-architecture, what decides which cells there are.
THRESHOLDS = {
    "GeneralizedRCNN": ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    "SemanticWatershed": tuple(
        f"MODEL.SEMANTIC_WATERSHED.{name}_THRESHOLD" for name in ("SEED", "BACKGROUND", "RELIEF", "SCORE")
    ),
}

Metrics = dict[str, Any]


@dataclass(frozen=True)
class StageRecord:
    """A finished stage.

    Attributes:
        seconds: of training, over all restarts.
        iterations: steps taken.
        metrics: {data set: {task: {metric: value}}}; tasks and units are those of TEST.EVALUATORS.
        commit: see `checkout`; of the process that finished it.
        folder: the stage's, in the pipeline's.
    """

    name: str
    trainer: str
    seconds: float
    iterations: int
    metrics: Metrics
    commit: str = "unknown"
    folder: str = ""

    def write(self, folder: Path) -> None:
        write_json(folder / "stage.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "StageRecord | None":
        """The record of a finished stage, None for an unfinished one; raises ResultsError where the file is broken."""
        path = folder / "stage.json"
        if not path.is_file() or not (folder / "model_final.pth").is_file():
            return None
        try:
            # Version 0.1.0 wrote none.
            return cls(**{"folder": folder.name, **json.loads(path.read_text())})
        except (ValueError, TypeError) as error:
            raise broken(path, error) from error


def broken(file: Path, reason: object) -> ResultsError:
    """Says what to do about it."""
    return ResultsError(f"{file}: broken ({' '.join(str(reason).split())}); remove it to have it made anew")


def write_json(path: Path, content: Any) -> None:
    """Writes as `write_whole`. NaN becomes null."""
    write_text(path, json.dumps(plain(content), indent=2) + "\n")


def plain(value: Any) -> Any:
    """What JSON can hold: text as keys, lists for tuples, None for floats that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_results(path: Path, records: Sequence[StageRecord], cfg: CfgNode) -> None:
    """results.json: metrics of the last stage with units and thresholds, its config, seconds a stage, versions, command."""
    write_json(
        path,
        {
            "metrics": records[-1].metrics,
            "units": tasks(cfg),
            "thresholds": evaluated_thresholds(cfg),
            "stages": [asdict(record) for record in records],
            "seconds": sum(record.seconds for record in records),
            "command": sys.argv,
            "versions": {"python": platform.python_version(), **versions()},
            "device": _device(cfg),
            "config": cfg,
        },
    )


def thresholds(cfg: CfgNode) -> dict[str, float]:
    """Those that decide which cells the config's network predicts, by key; none for networks of other kinds."""
    return {key: reduce(getitem, key.split("."), cfg) for key in THRESHOLDS.get(cfg.MODEL.META_ARCHITECTURE, ())}


def evaluated_thresholds(cfg: CfgNode) -> dict[str, float]:
    """Those that an evaluation under the config uses."""
    labels = {"TEST.LABELS.SCORE_THRESHOLD": cfg.TEST.LABELS.SCORE_THRESHOLD}
    return {**thresholds(cfg), **(labels if "labels" in cfg.TEST.EVALUATORS else {})}


def _device(cfg: CfgNode) -> str:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"


def checkout() -> str:
    """Short hash of the commit of this code, with + where what decides results differs from it.

    "unknown" without git, and where this is no checkout: installed, it may lie in somebody else's.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Of Python's packages that decide results, as installed."""
    found = {}
    for name in DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def table(metrics: Metrics) -> str:
    """The metrics as text tables: boxes and masks share one, each other task has its own, with all its metrics and units."""
    tables: dict[str, list[dict[str, str]]] = {}
    for dataset, by_task in metrics.items():
        for task, values in by_task.items():
            unit = unit_of(task)
            row = {"data set": dataset, "task": task}
            if task in COCO_TASKS:
                row |= {name: as_text(values.get(name), unit) for name in TABLE_METRICS}
                tables.setdefault("", []).append(row)
            else:
                named = {name if unit in (PERCENT, None) else f"{name} ({unit})": value for name, value in values.items()}
                row |= {name: as_text(value, unit) for name, value in named.items()}
                tables.setdefault(task, []).append(row)
    # That of boxes and masks first.
    ordered = [tables[task] for task in sorted(tables, key=bool)]
    return "\n\n".join(tabulate(rows, headers="keys", disable_numparse=True, stralign="right") for rows in ordered)
