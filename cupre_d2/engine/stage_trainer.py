"""What every trainer of a stage shares: phases, hooks, checkpoints, resuming, evaluation."""

import gc
import logging
import math
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import log_first_n
from detectron2.utils.registry import Registry
from torch import nn

from cupre_d2.checkpoint.checkpointer import CellCheckpointer
from cupre_d2.checkpoint.loading import LoadReport, load_initial_weights
from cupre_d2.data.loaders import build_test_loader
from cupre_d2.engine import preemption
from cupre_d2.engine.distributed import share_buffers
from cupre_d2.engine.phases import NONFINITE_FILE, Phase
from cupre_d2.engine.progress import ProgressPrinter, StageClock
from cupre_d2.engine.results import Metrics
from cupre_d2.errors import ConfigError
from cupre_d2.evaluation.build import build_evaluators
from cupre_d2.evaluation.overlays import OverlayWriter
from cupre_d2.files import drop_later
from cupre_d2.modeling.layers import modes_kept
from cupre_d2.randomness import seed_everything

TRAINER_REGISTRY = Registry("TRAINER")
TRAINER_REGISTRY.__doc__ = "The trainers a stage may name in its config's TRAINER; called with the stage's config."

LOG_PERIOD = 20
METRICS_FILE = "metrics.json"
BACKBONE_PREFIX = "backbone.bottom_up."


class Checkpoints(HookBase):
    """Saves where the trainer says so, and where the run is to end; what was measured until then is on the disk before,
    and each evaluation at once.
    """

    def __init__(self, trainer: "StageTrainer", writers: list[EventWriter]) -> None:
        self._trainer = weakref.proxy(trainer)
        self._writers = writers

    def after_step(self) -> None:
        trainer = self._trainer
        ends = preemption.requested(trainer.cfg.MODEL.DEVICE)
        name = trainer.checkpoint_name() or (f"model_{trainer.iter:07d}" if ends else "")
        period = trainer.cfg.TEST.EVAL_PERIOD
        evaluated = period > 0 and (trainer.iter + 1) % period == 0
        if name or evaluated:
            # Of two evaluations between their own periods, they would keep the later.
            for writer in self._writers:
                writer.write()
        if name:
            trainer.checkpointer.save(name, iteration=trainer.iter)
        if ends:
            # Who leaves first has the others ended, the one that still writes among them.
            comm.synchronize()
            raise preemption.Preempted


class StageTrainer(TrainerBase):
    """Trains one stage. Subclasses build the phases and say which one an iteration belongs to.

    Attributes:
        model: what is saved under "model" in a checkpoint, and so what the next stage starts from.
        phases: by name; each has an optimizer and a schedule of its own.
        clock: counts the seconds of training over all restarts.
        seed: of all random numbers of the stage, SEED or, where that is negative, one that is drawn.
        loaded: what became of MODEL.WEIGHTS; None where training goes on, or starts from none.
        best: mask AP of `model_best.pth`, percent, of the evaluations that TEST.EVAL_PERIOD asks for.

    A step's random numbers follow from the seed, the iteration and the process, so that a run that was stopped goes on
    exactly as it would have; generators need not be saved.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, phases: Mapping[str, Phase], max_iter: int, **checkpointables: Any
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.phases = phases
        self.max_iter = max_iter
        self.clock = StageClock()
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.best = -math.inf if cfg.TEST.BEST.HIGHER else math.inf
        self.loaded: LoadReport | None = None
        self._running: tuple[str, int] | None = None
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        if cfg.TEST.PRECISE_BN.ENABLED:
            message = (
                "TEST.PRECISE_BN.ENABLED True: not done; batch norms are evaluated with the statistics they trained with"
            )
            log_first_n(logging.WARNING, message, key="message", name=__name__)
        self.checkpointer = CellCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            save_to_disk=comm.is_main_process(),
            trainer=weakref.proxy(self),
            **checkpointables,
        )

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        """The stage's number of iterations, without building anything that trains; raises CupreError where it would fail."""
        raise NotImplementedError

    def phase_name(self) -> str:
        """The phase that `self.iter` belongs to."""
        raise NotImplementedError

    def round(self) -> int:
        """The round that `self.iter` belongs to, from 0; for stages that have rounds."""
        return 0

    def start_phase(self, name: str) -> None:
        """Sets the phase's data loader.

        Called at the first step, also after a restart, and whenever the phase or the round changes.
        """
        raise NotImplementedError

    def checkpoint_name(self) -> str:
        """Of the checkpoint to save after this iteration; "" for none."""
        done = self.iter + 1
        if done == self.max_iter:
            return "model_final"
        return "" if done % self.cfg.SOLVER.CHECKPOINT_PERIOD else f"model_{self.iter:07d}"

    def position(self) -> str:
        """Where in the stage training stands, for people; "" when the iteration says it all."""
        return ""

    def resume_or_load(self) -> None:
        """Goes on from the last checkpoint in OUTPUT_DIR, or starts from MODEL.WEIGHTS and MODEL.BACKBONE_WEIGHTS."""
        self.checkpointer.remove_partial()
        if self.checkpointer.resume():
            self.start_iter = self.iter + 1
        else:
            if self.cfg.MODEL.WEIGHTS:
                self.loaded = load_initial_weights(self.model, self.cfg.MODEL.WEIGHTS)
            if self.cfg.MODEL.BACKBONE_WEIGHTS:
                load_initial_weights(self.model, self.cfg.MODEL.BACKBONE_WEIGHTS, only_prefix=BACKBONE_PREFIX)
            self.after_initial_weights()
        if comm.is_main_process():
            for name in (METRICS_FILE, NONFINITE_FILE):
                drop_later(Path(self.cfg.OUTPUT_DIR) / name, self.start_iter)

    def after_initial_weights(self) -> None:
        """For state that derives from the initial weights; not called when resuming, where it is loaded."""

    def train_stage(self, writers: list[EventWriter]) -> None:
        """Trains to the end of the stage; does nothing when a checkpoint of the last iteration was loaded."""
        if self.start_iter < self.max_iter:
            self.register_hooks(self.build_hooks(writers))
            try:
                with preemption.deferring("leaving after this step with a checkpoint"):
                    self.train(self.start_iter, self.max_iter)
            finally:
                # Ends the loaders' processes, which hold on to the memory that this one had when they were forked.
                for phase in self.phases.values():
                    phase.reset_data_loader(lambda: None)
                gc.collect()

    def build_hooks(self, writers: list[EventWriter]) -> list[HookBase]:
        # A checkpoint comes last: it then holds the best score, and what it counts as done is in the metrics' file.
        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.test_and_keep_best, eval_after_train=False)
        built: list[HookBase] = [hooks.IterationTimer(), self.clock, evaluation]
        files: list[EventWriter] = []
        if comm.is_main_process():
            printer = ProgressPrinter(LOG_PERIOD, weakref.proxy(self))
            files = [JSONWriter(os.path.join(self.cfg.OUTPUT_DIR, METRICS_FILE)), TensorboardXWriter(self.cfg.OUTPUT_DIR)]
            built.append(hooks.PeriodicWriter([printer, *writers, *files], period=LOG_PERIOD))
        return [*built, Checkpoints(self, files)]

    def run_step(self) -> None:
        name, round_ = self.phase_name(), self.round()
        if (name, round_) != self._running:
            self.start_phase(name)
            self._running = name, round_
        phase = self.phases[name]
        seed_everything(self.seed, phase.number, self.iter, comm.get_rank())
        phase.run_step(self.iter, self)

    def state_dict(self) -> dict[str, Any]:
        phases = {name: phase.state_dict() for name, phase in self.phases.items()}
        own = {"clock": self.clock.snapshot(), "seed": self.seed, "best": self.best}
        return {**super().state_dict(), **own, "phases": phases}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.clock.restore(state_dict["clock"])
        self.seed, self.best = state_dict["seed"], state_dict["best"]
        for name, phase in self.phases.items():
            phase.load_state_dict(state_dict["phases"][name])

    def test_and_keep_best(self) -> Metrics:
        """As `test`; keeps the best, by `best_score`, of the evaluations that TEST.EVAL_PERIOD asks for and the last."""
        results = self.test()
        if self.cfg.TEST.EVAL_PERIOD and results:
            score = best_score(self.cfg, results)
            if score > self.best if self.cfg.TEST.BEST.HIGHER else score < self.best:
                self.best = score
                # After the last step Detectron2 counts one on.
                self.checkpointer.save_best(iteration=min(self.iter, self.max_iter - 1))
        return results

    def test(self) -> Metrics:
        """As the function."""
        return test(self.cfg, self.model)


def best_score(cfg: CfgNode, results: Metrics) -> float:
    """Of an evaluation, the number that TEST.BEST names; NaN, which is never best, where it is undefined.

    Raises ConfigError where there is none of that name.
    """
    best = cfg.TEST.BEST
    scores = results[best.DATASET or cfg.DATASETS.TEST[0]].get(best.TASK, {})
    if best.METRIC not in scores:
        known = ", ".join(scores) or "none"
        raise ConfigError(
            f"TEST.BEST.METRIC {best.METRIC}: no metric of TEST.BEST.TASK {best.TASK}; those there are: {known}"
        )
    return float(scores[best.METRIC])


def test(cfg: CfgNode, model: nn.Module) -> Metrics:
    """Evaluates on DATASETS.TEST, files below OUTPUT_DIR.

    Returns:
        {data set: {"bbox", "segm" or "labels": {metric: value}}}; empty on other processes than the first.
    """
    results: Metrics = {}
    share_buffers(model)
    for name in cfg.DATASETS.TEST:
        evaluators = build_evaluators(cfg, name)
        if cfg.TEST.OVERLAYS:
            evaluators.append(OverlayWriter(name, cfg.TEST.OVERLAYS, cfg.OUTPUT_DIR, cfg.INPUT.PERCENTILES))
        loader = build_test_loader(cfg, name)
        with modes_kept(model):
            results[name] = inference_on_dataset(model, loader, DatasetEvaluators(evaluators))
    return results if comm.is_main_process() else {}
