"""What follows the last stage: the better of the model it started from and the one it made, its thresholds, its package."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm

from cupre_d2.checkpoint.loading import CONSTANTS, load_initial_weights
from cupre_d2.checkpoint.packages import FACTS, FOLDER
from cupre_d2.checkpoint.reading import read_checkpoint
from cupre_d2.engine.results import Metrics, StageRecord, write_json
from cupre_d2.engine.stage_trainer import StageTrainer, test
from cupre_d2.engine.stages import Stage
from cupre_d2.engine.tuning import tune
from cupre_d2.errors import CupreError
from cupre_d2.predict.package import network, segments, write_package

logger = logging.getLogger(__name__)

BEFORE = "before.json"


def measure_start(trainer: StageTrainer) -> None:
    """Evaluates the weights that a stage starts from, into before.json, where they are a whole model of the same classes.

    Nothing is done where training goes on, or the stage has no DATASETS.TEST.
    """
    cfg, loaded = trainer.cfg, trainer.loaded
    if trainer.start_iter or not loaded or not cfg.DATASETS.TEST or cfg.MODEL.BACKBONE_WEIGHTS:
        return
    if loaded.missing or loaded.mismatched:
        return
    logger.info(f"{cfg.MODEL.WEIGHTS}: evaluated before training")
    own = cfg.clone()
    own.defrost()
    own.OUTPUT_DIR, own.TEST.OVERLAYS = str(Path(cfg.OUTPUT_DIR) / "before"), 0
    metrics = test(own, trainer.model)
    if comm.is_main_process():
        write_json(Path(cfg.OUTPUT_DIR) / BEFORE, {"weights": cfg.MODEL.WEIGHTS, "metrics": metrics})


def package(output_dir: Path, stages: Sequence[Stage], records: Sequence[StageRecord]) -> None:
    """Writes OUTPUT_DIR/model_package of a finished pipeline whose last stage detects cells, unless it is there.

    Input that is not there any more leaves it out, which is logged: training has gone well before.

    Args:
        records: of the stages.

    Raises:
        OSError: it cannot be written.
    """
    folder, last, record = output_dir / FOLDER, stages[-1], records[-1]
    cfg = last.cfg
    if not segments(cfg):
        return
    made = folder / FACTS
    if made.is_file() and made.stat().st_mtime_ns >= (last.folder / "stage.json").stat().st_mtime_ns:
        return
    try:
        before = _before(last, record.metrics)
        start = before["weights"] if before and before["kept"] == "start" else ""
        weights = _start_weights(cfg, start) if start else _final_weights(last)
        tuning = tune(cfg, lambda own: network(own, weights))
        history = {
            "started_from": cfg.MODEL.WEIGHTS,
            "stages": [{key: getattr(one, key) for key in ("name", "trainer", "iterations", "seconds")} for one in records],
        }
        write_package(
            folder,
            cfg,
            weights,
            before["metrics"] if start and before else record.metrics,
            trained=[stage.cfg for stage in stages],
            tuning=tuning,
            before=before,
            history=history,
            commit=record.commit,
        )
    except CupreError as error:
        logger.warning(f"no {folder}: {error}")
        return
    logger.info(f"model package: {folder}")


def _final_weights(stage: Stage) -> dict[str, torch.Tensor]:
    weights = read_checkpoint(str(stage.final_checkpoint))["model"]
    return {key: value for key, value in weights.items() if not CONSTANTS.search(key)}


def _start_weights(cfg: CfgNode, path: str) -> dict[str, torch.Tensor]:
    model = build_model(cfg)
    load_initial_weights(model, path)
    return model.state_dict()


def _before(stage: Stage, after: Metrics) -> dict[str, Any] | None:
    """What the stage started from, its metrics, and which of the two models to keep; None where it was not evaluated."""
    file = stage.folder / BEFORE
    if not file.is_file():
        return None
    before = json.loads(file.read_text())
    best = stage.cfg.TEST.BEST
    dataset = best.DATASET or stage.cfg.DATASETS.TEST[0]
    scores = [_score(metrics, dataset, best.TASK, best.METRIC) for metrics in (before["metrics"], after)]
    sign = 1 if best.HIGHER else -1
    worse = sign * scores[1] < sign * scores[0] or (math.isnan(scores[1]) and not math.isnan(scores[0]))
    metric = f"{best.METRIC} ({best.TASK}) on {dataset}"
    said = f"{metric}: {scores[0]:.4g} before, {scores[1]:.4g} after"
    if worse:
        logger.warning(f"training made the model worse, {said}: the package holds {before['weights']} as it was")
    else:
        logger.info(f"{said}: the package holds the trained model")
    return {
        **before,
        "metric": metric,
        "scores": scores,
        "after": after,
        "kept": "start" if worse else "final",
    }


def _score(metrics: Metrics, dataset: str, task: str, metric: str) -> float:
    """NaN, which is never better, where it was not measured."""
    value = metrics.get(dataset, {}).get(task, {}).get(metric)
    return math.nan if value is None else float(value)
