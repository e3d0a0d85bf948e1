"""Runs the stages of a pipeline: skips what is finished, resumes what is not, hands each checkpoint on."""

import gc
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.engine.progress import PipelinePace, PipelineProgress
from cupre_d2.engine.results import Metrics, StageRecord, table, write_json, write_results
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY
from cupre_d2.engine.stages import Stage, closest
from cupre_d2.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

# Settings that may change between two runs in one folder, as they do not change what is trained.
FREE_KEYS = (
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.OVERLAYS",
    "VIS_PERIOD",
)


def select(stages: Sequence[Stage], only: str | None) -> list[Stage]:
    """The stages to run: all, or the one named; raises ConfigError for an unknown name."""
    if only is None:
        return list(stages)
    chosen = [stage for stage in stages if stage.name == only]
    if not chosen:
        raise ConfigError(f"--stage {only}: no such stage; {closest(only, [stage.name for stage in stages])}")
    return chosen


def open_folder(output_dir: str, stages: Sequence[Stage], chosen: Sequence[Stage], restart: bool) -> None:
    """Makes the stages' folders ready; the configs they were trained with must be the ones asked for now.

    Raises:
        ConfigError: OUTPUT_DIR holds stages of another config, and not `restart`.
    """
    root = Path(output_dir)
    ours = {stage.folder.name for stage in stages}
    strangers = [path.parent for path in sorted(root.glob("*/config.yaml")) if re.match(r"\d+_", path.parent.name)]
    strangers = [path for path in strangers if path.name not in ours]
    if restart:
        for folder in [stage.folder for stage in chosen] + (strangers if len(chosen) == len(stages) else []):
            shutil.rmtree(folder, ignore_errors=True)
    elif strangers:
        raise ConfigError(f"OUTPUT_DIR {root} holds another pipeline (stage {strangers[0].name}); --restart removes it")
    for stage in chosen:
        saved = stage.folder / "config.yaml"
        if saved.is_file():
            _check_same(stage, yaml.safe_load(saved.read_text()))
        else:
            saved.parent.mkdir(parents=True, exist_ok=True)
            saved.write_text(stage.cfg.dump())


def _check_same(stage: Stage, saved: dict[str, Any]) -> None:
    before = _comparable(saved)
    now = _comparable(yaml.safe_load(stage.cfg.dump()))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        shown = "; ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"OUTPUT_DIR: {stage.folder} was made with another config ({shown}{more}); "
            "choose another OUTPUT_DIR, or --restart to start over"
        )


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    root = os.path.dirname(config["OUTPUT_DIR"])
    flat = _flatten(config)
    for key in FREE_KEYS:
        flat.pop(key, None)
    # A stage's start inside this very folder stays the same start when the folder is moved.
    return {
        key: os.path.relpath(value, root) if isinstance(value, str) and value.startswith(root + os.sep) else value
        for key, value in flat.items()
    }


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def check(stages: Sequence[Stage], chosen: Sequence[Stage], restart: bool) -> dict[str, int]:
    """Checks the input of every stage that will run; returns the iterations of each.

    Raises:
        CupreError: unknown trainer, unusable data set or image, missing checkpoint.
    """
    steps = {}
    coming: set[str] = set()
    for stage in chosen:
        if StageRecord.read(stage.folder) and not restart:
            continue
        steps[stage.name] = trainer_class(stage).plan(stage.cfg)
        for key in ("WEIGHTS", "BACKBONE_WEIGHTS"):
            path = stage.cfg.MODEL[key]
            if path and path not in coming and not os.path.isfile(path):
                raise CheckpointError(f"stage {stage.name}: MODEL.{key} {path}: no such file{_hint(path, stages)}")
        coming.add(str(stage.final_checkpoint))
    return steps


def _hint(path: str, stages: Sequence[Stage]) -> str:
    maker = next((stage.name for stage in stages if str(stage.final_checkpoint) == path), None)
    return f"; run stage {maker} first" if maker else ""


def trainer_class(stage: Stage) -> Any:
    """The trainer, built from a config, that TRAINER names; raises ConfigError with the closest names for an unknown one."""
    known = dict(TRAINER_REGISTRY)
    if stage.cfg.TRAINER not in known:
        raise ConfigError(f"stage {stage.name}: TRAINER {stage.cfg.TRAINER}: {closest(stage.cfg.TRAINER, list(known))}")
    return known[stage.cfg.TRAINER]


def run(output_dir: str, stages: Sequence[Stage], chosen: Sequence[Stage], steps: dict[str, int]) -> None:
    """Trains the chosen stages that are not finished, then writes OUTPUT_DIR/results.json when all of them are.

    Args:
        steps: iterations of each stage that will run, from `check`.
    """
    records: list[StageRecord] = []
    pace = PipelinePace()
    for number, stage in enumerate(stages, start=1):
        record = StageRecord.read(stage.folder)
        if record:
            logger.info(f"stage {number}/{len(stages)} {stage.name}: finished before, skipped")
        elif stage in chosen:
            pace.title = f"stage {number}/{len(stages)} {stage.name}"
            later = [s for s in chosen if stages.index(s) >= number and s.name in steps]
            pace.later = [(s.cfg.TRAINER, steps[s.name]) for s in later]
            record = _run_stage(stage, pace)
            # Hooks and trainer refer to each other: without this, the next stage would find the last one's memory in use.
            gc.collect()
        if record:
            records.append(record)
            pace.done += record.iterations
            pace.paces[record.trainer] = record.seconds / max(record.iterations, 1)
    if len(records) == len(stages) and comm.is_main_process():
        path = Path(output_dir) / "results.json"
        write_results(path, records, stages[-1].cfg)
        seconds = ", ".join(f"{record.name} {record.seconds:.0f} s" for record in records)
        logger.info(f"trained: {seconds}\n{table(records[-1].metrics)}")
        logger.info(f"results: {path}   pictures: {stages[-1].folder / 'overlays'}")


def _run_stage(stage: Stage, pace: PipelinePace) -> StageRecord:
    logger.info(f"{pace.title}: {stage.cfg.TRAINER}, output in {stage.folder}")
    if stage.cfg.SEED >= 0:
        seed_all_rng(stage.cfg.SEED + comm.get_rank())
    trainer = trainer_class(stage)(stage.cfg)
    trainer.resume_or_load()
    trainer.train_stage([PipelineProgress(pace, trainer)])
    record = StageRecord(stage.name, stage.cfg.TRAINER, trainer.clock.seconds, trainer.max_iter, trainer.test())
    if comm.is_main_process():
        record.write(stage.folder)
    comm.synchronize()
    return record


def weights_to_evaluate(stage: Stage, opts: Sequence[Any]) -> str:
    """The checkpoint for --eval-only: MODEL.WEIGHTS of the command line, else the stage's own last one.

    Raises:
        CheckpointError: there is no such file.
    """
    given = dict(zip(opts[0::2], opts[1::2], strict=True)).get("MODEL.WEIGHTS")
    path = str(given or stage.final_checkpoint)
    if not os.path.isfile(path):
        raise CheckpointError(f"--eval-only: {path}: no such file; train first or give MODEL.WEIGHTS")
    return path


def evaluate(stage: Stage, weights: str) -> Metrics:
    """Evaluates a checkpoint on the stage's DATASETS.TEST; writes `evaluation.json` beside the stage's folder.

    Raises:
        CheckpointError: the checkpoint does not fit.
    """
    trainer = trainer_class(stage)(stage.cfg)
    load_initial_weights(trainer.model, weights)
    metrics = trainer.test()
    if comm.is_main_process():
        write_json(stage.folder.parent / "evaluation.json", {"weights": weights, "metrics": metrics})
        logger.info(f"{weights}\n{table(metrics)}")
    return metrics
