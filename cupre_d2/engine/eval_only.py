"""Evaluates a checkpoint without training: --eval-only."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.engine.pipeline import select
from cupre_d2.engine.preflight import check_processes, check_settings, check_tests
from cupre_d2.engine.results import Metrics, checkout, evaluated_thresholds, table, write_json
from cupre_d2.engine.single_phase import build_network
from cupre_d2.engine.stage_trainer import test
from cupre_d2.engine.stages import Stage, load_stages, register_datasets
from cupre_d2.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

# Below OUTPUT_DIR: the stages' own folders keep what their own checkpoints found.
FOLDER = "evaluation"


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint to evaluate on the DATASETS.TEST of a stage, whose OUTPUT_DIR is that of the evaluation."""

    output_dir: str
    stage: Stage
    weights: str

    @property
    def stages(self) -> list[Stage]:
        return [self.stage]


def prepare_evaluation(
    config_file: str, opts: Sequence[Any] = (), only: str | None = None, processes: int = 1
) -> Evaluation:
    """Checks what --eval-only needs: MODEL.WEIGHTS of `opts`, else the checkpoint of the stage (by default the last).

    `STAGE.MODEL.WEIGHTS` of the stage goes before `MODEL.WEIGHTS`, as in training. Training images need not be there.
    Raises CupreError, one line on what cannot be used.
    """
    output_dir, stages = load_stages(config_file, opts)
    stage = select(stages, only)[-1]
    given = dict(zip(opts[0::2], opts[1::2], strict=True))
    named = given.get(f"{stage.name}.MODEL.WEIGHTS") or given.get("MODEL.WEIGHTS")
    weights = os.path.expanduser(str(named)) if named else str(stage.final_checkpoint)
    if not os.path.exists(weights):
        raise CheckpointError(f"--eval-only: {weights}: no such file; train first or give MODEL.WEIGHTS")
    cfg = stage.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(output_dir, FOLDER)
    cfg.freeze()
    if not cfg.DATASETS.TEST:
        raise ConfigError(f"--eval-only: stage {stage.name}: DATASETS.TEST (): expected a data set")
    check_processes([stage], processes)
    check_settings(cfg)
    check_tests(cfg)
    return Evaluation(output_dir, Stage(stage.name, cfg), weights)


def evaluate(job: Evaluation) -> Metrics:
    """Evaluates a checkpoint; the metrics go to OUTPUT_DIR/evaluation.json, all else to OUTPUT_DIR/evaluation.

    Raises CheckpointError where the checkpoint does not fit the model.
    """
    register_datasets(job.stages)
    commit = checkout()
    cfg = job.stage.cfg
    model = build_network(cfg)
    report = load_initial_weights(model, job.weights)
    untrained = [*report.missing, *(key for key, _, _ in report.mismatched)]
    if untrained:
        raise CheckpointError(
            f"--eval-only: {job.weights}: no weights for {len(untrained)} tensors of the model, the first {untrained[0]}; "
            "expected a checkpoint of this very model"
        )
    metrics = test(cfg, model)
    if comm.is_main_process():
        used = evaluated_thresholds(cfg)
        found = {"weights": job.weights, "commit": commit, "metrics": metrics, "thresholds": used}
        write_json(Path(job.output_dir) / "evaluation.json", found)
        logger.info(f"{job.weights}\n{table(metrics)}")
        logger.info(f"detections and pictures: {cfg.OUTPUT_DIR}")
    return metrics
