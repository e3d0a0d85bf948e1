"""Runs the stages of a pipeline: skips what is finished, resumes what is not, hands each checkpoint on."""

import gc
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

import cupre_d2
from cupre_d2.checkpoint.loading import read_source
from cupre_d2.config import default_config, flatten
from cupre_d2.engine import distributed, packaging, preemption
from cupre_d2.engine.preflight import check_processes
from cupre_d2.engine.progress import PipelinePace, PipelineProgress
from cupre_d2.engine.results import Metrics, StageRecord, checkout, table, write_results
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY
from cupre_d2.engine.stages import Stage, load_stages, register_datasets
from cupre_d2.errors import CheckpointError, ConfigError, CupreError, DatasetError, closest
from cupre_d2.files import hold, release, write_text
from cupre_d2.migration import migrate
from cupre_d2.report import write_report

logger = logging.getLogger(__name__)

# Settings that may change between two runs in one folder, as they do not change what is trained.
FREE_KEYS = (
    "OUTPUT_DIR",
    "DATASETS.FILE",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_KEEP",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.OVERLAYS",
    "TEST.TUNING.ENABLED",
    "TEST.TUNING.IMAGES",
    "VIS_PERIOD",
)

CONFIG = "config.yaml"
# How a stage's saved config begins.
VERSION_LINE = "# cupre_d2 "

LOGGERS = ("detectron2", "fvcore", "cupre_d2")
# Those that log_to has added, by logger.
_handlers: dict[str, list[logging.Handler]] = {}


@dataclass(frozen=True)
class Job:
    """A pipeline whose input has been checked and whose folder is ready.

    Attributes:
        chosen: the stages to run unless they are finished.
        steps: iterations of each stage that will run, by name.
    """

    output_dir: str
    stages: list[Stage]
    chosen: list[Stage]
    steps: dict[str, int]


def prepare(
    config_file: str,
    opts: Sequence[Any] = (),
    only: str | None = None,
    restart: bool = False,
    first: bool = True,
    processes: int = 1,
) -> Job:
    """Does all that can fail on bad input before anything trains; until it ends, no other process can train there.

    Args:
        config_file: a pipeline's or a stage's YAML.
        opts: overrides, `KEY, value, STAGE.KEY, value, …`.
        only: name of the one stage to run.
        restart: removes what earlier runs of the chosen stages left, once nothing else can fail.
        first: of the processes that train together; the others are not kept out, and neither remove nor write anything.
        processes: how many there will be.

    Raises:
        CupreError: one line on what cannot be used, or another process trains in the folder.
    """
    output_dir, stages = load_stages(config_file, opts)
    chosen = select(stages, only)
    check_processes(chosen, processes)
    steps = check(stages, chosen, restart)
    if restart and only:
        later = [stage.name for stage in stages[stages.index(chosen[0]) + 1 :] if StageRecord.read(stage.folder)]
        if later:
            logger.warning(f"--restart of {only}: {', '.join(later)} stay as trained from its earlier weights")
    if first:
        hold(output_dir, "training there")
        try:
            open_folder(output_dir, stages, chosen, restart)
        except BaseException:
            release(output_dir)
            raise
    return Job(output_dir, stages, chosen, steps)


def train(
    config_file: str,
    overrides: Mapping[str, Any] | None = None,
    only: str | None = None,
    restart: bool = False,
    datasets: str = "",
) -> Metrics:
    """Trains a pipeline in this process, or as one of torchrun's, as tools/train_net.py does.

    Args:
        overrides: values by `KEY` or `STAGE.KEY`; the other arguments and the errors are those of `prepare`.
        datasets: a YAML file of data sets of one's own, see `register_dataset_file`.

    Returns:
        The last stage's metrics, {data set: {task: {metric: value}}}; they are in OUTPUT_DIR/results.json too.
    """
    opts = [item for pair in (overrides or {}).items() for item in pair]
    if datasets:
        opts += ["DATASETS.FILE", datasets]
    if distributed.under_torchrun():
        distributed.join_torchrun()
    processes = comm.get_world_size()
    job = distributed.on_first_then_others(
        lambda first: prepare(config_file, opts, only, restart and first, first, processes)
    )
    try:
        log_to(job.output_dir)
        return run(job)
    finally:
        release(job.output_dir)


def log_to(output_dir: str) -> None:
    """Logs to the terminal and to OUTPUT_DIR/log.txt, and to that of no pipeline of before."""
    # It would add no handlers again for a folder that it knows.
    setup_logger.cache_clear()
    for name in LOGGERS:
        known = logging.getLogger(name)
        for handler in _handlers.pop(name, []):
            known.removeHandler(handler)
        before = list(known.handlers)
        setup_logger(os.path.join(output_dir, "log.txt"), distributed_rank=comm.get_rank(), name=name)
        _handlers[name] = [handler for handler in known.handlers if handler not in before]
    # Detectron2 logs the stack of whatever ends training; of bad input, people get one line from the tool.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_input_error)


def _is_no_input_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], CupreError))


def select(stages: Sequence[Stage], only: str | None) -> list[Stage]:
    """The stages to run: all, or the one named; raises ConfigError for an unknown name."""
    chosen = [stage for stage in stages if only in (None, stage.name)]
    if only and not chosen:
        raise ConfigError(f"--stage {only}: no such stage; {closest(only, [stage.name for stage in stages])}")
    return chosen


def open_folder(output_dir: str, stages: Sequence[Stage], chosen: Sequence[Stage], restart: bool) -> None:
    """Makes the stages' folders ready; raises ConfigError if OUTPUT_DIR holds stages of other configs, and not `restart`."""
    root = Path(output_dir)
    ours = {stage.folder.name for stage in stages}
    strangers = [path.parent for path in sorted(root.glob("*/config.yaml")) if re.match(r"\d+_", path.parent.name)]
    strangers = [path for path in strangers if path.name not in ours]
    if restart:
        for folder in [stage.folder for stage in chosen] + (strangers if len(chosen) == len(stages) else []):
            shutil.rmtree(folder, ignore_errors=True)
    elif strangers:
        raise ConfigError(
            f"OUTPUT_DIR {root} holds another pipeline (stage {strangers[0].name}{_made_by(strangers[0])}); "
            "--restart removes it"
        )
    for stage in chosen:
        if (stage.folder / CONFIG).is_file():
            _check_same(stage)
            continue
        try:
            write_text(stage.folder / CONFIG, f"{VERSION_LINE}{cupre_d2.__version__}\n{stage.cfg.dump()}")
        except OSError as error:
            raise ConfigError(f"OUTPUT_DIR {root}: cannot be written to ({error})") from error


def _made_by(folder: Path) -> str:
    """A clause that names the version of this package that made a stage's folder, if it is another; 0.1.0 said none."""
    first, _, _ = (folder / CONFIG).read_text().partition("\n")
    version = first.removeprefix(VERSION_LINE) if first.startswith(VERSION_LINE) else "0.1.0"
    return "" if version == cupre_d2.__version__ else f", made by cupre_d2 {version}; this is {cupre_d2.__version__}"


def _check_same(stage: Stage) -> None:
    file = stage.folder / CONFIG
    saved = migrate(yaml.safe_load(file.read_text()), str(file))
    # What a version of before did not know, it trained with what is the default now.
    before = {**flatten(yaml.safe_load(default_config().dump())), **comparable(saved)}
    now = comparable(yaml.safe_load(stage.cfg.dump()))
    changed = [key for key in sorted(now) if before.get(key) != now[key]]
    if changed:
        shown = "; ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"OUTPUT_DIR: {stage.folder} was made with another config ({shown}{more}{_made_by(stage.folder)}); "
            "choose another OUTPUT_DIR, or --restart to start over"
        )


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage that decide what is trained, flat; paths in the pipeline's OUTPUT_DIR relative to it."""
    root = os.path.dirname(config["OUTPUT_DIR"])
    # A stage's start inside this very folder stays the same start when the folder is moved.
    return {
        key: os.path.relpath(value, root) if isinstance(value, str) and value.startswith(root + os.sep) else value
        for key, value in flatten(config).items()
        if key not in FREE_KEYS
    }


def check(stages: Sequence[Stage], chosen: Sequence[Stage], restart: bool) -> dict[str, int]:
    """Checks the input of every stage that will run; returns the iterations of each.

    Raises:
        CupreError: unknown trainer, unusable data set or image, checkpoint that is missing or cannot be read.
    """
    steps = {}
    coming: set[str] = set()
    for stage in chosen:
        if StageRecord.read(stage.folder) and not restart:
            continue
        try:
            steps[stage.name] = trainer_class(stage).plan(stage.cfg)
        except DatasetError as error:
            raise DatasetError(f"{error}{_instead_of(stage)}") from error
        for key in ("WEIGHTS", "BACKBONE_WEIGHTS"):
            path = stage.cfg.MODEL[key]
            if not path or path in coming:
                continue
            if not os.path.exists(path):
                maker = next((f"; run stage {one.name} first" for one in stages if str(one.final_checkpoint) == path), "")
                raise CheckpointError(f"stage {stage.name}: MODEL.{key} {path}: no such file{maker}")
            read_source(path)
        coming.add(str(stage.final_checkpoint))
    return steps


def _instead_of(stage: Stage) -> str:
    """A clause that names the pipelines beside a stage's folder that go without it: not everybody has COCO."""
    others = []
    for file in sorted(Path(stage.file).parent.parent.glob("*.yaml")):
        content = yaml.safe_load(file.read_text())
        stages = content.get("PIPELINE", {}).get("STAGES", []) if isinstance(content, dict) else []
        if stages and not any((file.parent / one).resolve() == Path(stage.file).resolve() for one in stages):
            others.append(file.name)
    return f"; pipelines without stage {stage.name}: {', '.join(others)}" if others else ""


def trainer_class(stage: Stage) -> Any:
    """The trainer, built from a config, that TRAINER names; raises ConfigError with the closest names for an unknown one."""
    name, known = stage.cfg.TRAINER, dict(TRAINER_REGISTRY)
    if name not in known:
        raise ConfigError(f"stage {stage.name}: TRAINER {name}: {closest(name, known)}")
    return known[name]


@preemption.watching()
def run(job: Job) -> Metrics:
    """Trains the chosen stages that are not finished, then writes OUTPUT_DIR/results.json when all of them are.

    Returns:
        The metrics of the last stage that is finished.

    Raises:
        SystemExit: with `preemption.RESUME_ME`, after SIGTERM or SIGUSR1.
    """
    register_datasets(job.stages)
    finished: list[tuple[StageRecord, Stage]] = []
    pace = PipelinePace()
    # Now: in hours of training the checkout may change.
    commit = checkout()
    for number, stage in enumerate(job.stages, start=1):
        record = StageRecord.read(stage.folder)
        if record:
            logger.info(f"stage {number}/{len(job.stages)} {stage.name}: finished before, skipped")
        elif stage in job.chosen:
            pace.title = f"stage {number}/{len(job.stages)} {stage.name}"
            coming = [later for later in job.stages[number:] if later.name in job.steps]
            pace.later = [(later.cfg.TRAINER, job.steps[later.name]) for later in coming]
            record = _run_stage(stage, pace, commit, _starts_from_outside(job.stages, stage))
            # Hooks and trainer refer to each other: without this, the next stage would find the last one's memory in use.
            gc.collect()
        if record:
            finished.append((record, stage))
            pace.done += record.iterations
            pace.paces[record.trainer] = record.seconds / max(record.iterations, 1)
    if finished and comm.is_main_process():
        _report(Path(job.output_dir), finished, whole=finished[-1][1] is job.stages[-1])
    return finished[-1][0].metrics if finished else {}


def _starts_from_outside(stages: Sequence[Stage], stage: Stage) -> bool:
    """Whether it is the last stage and starts from weights that none of this pipeline's stages made."""
    return stage is stages[-1] and stage.cfg.MODEL.WEIGHTS not in {str(one.final_checkpoint) for one in stages}


def _report(output_dir: Path, finished: Sequence[tuple[StageRecord, Stage]], whole: bool) -> None:
    """Args: whole: the pipeline's last stage is among those that are finished."""
    records, (_, last) = [record for record, _ in finished], finished[-1]
    write_results(output_dir / "results.json", records, last.cfg)
    seconds = ", ".join(f"{record.name} {record.seconds:.0f} s" for record in records)
    logger.info(f"trained: {seconds}\n{table(records[-1].metrics)}")
    logger.info(f"results: {output_dir / 'results.json'}   pictures: {last.folder / 'overlays'}")
    if whole:
        packaging.package(output_dir, [stage for _, stage in finished], records)
    write_report(output_dir)


def _run_stage(stage: Stage, pace: PipelinePace, commit: str, measure_start: bool = False) -> StageRecord:
    logger.info(f"{pace.title}: {stage.cfg.TRAINER}, output in {stage.folder}")
    if stage.cfg.SEED >= 0:
        seed_all_rng(stage.cfg.SEED + comm.get_rank())
    trainer = trainer_class(stage)(stage.cfg)
    try:
        trainer.resume_or_load()
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_made_by(stage.folder)}") from error
    if measure_start:
        packaging.measure_start(trainer)
    trainer.train_stage([PipelineProgress(pace, trainer)])
    with preemption.deferring("leaving after this evaluation"):
        metrics = trainer.test_and_keep_best()
        taken = (trainer.clock.seconds, trainer.max_iter)
        record = StageRecord(stage.name, stage.cfg.TRAINER, *taken, metrics, commit, stage.folder.name)
        if comm.is_main_process():
            record.write(stage.folder)
        comm.synchronize()
    return record
