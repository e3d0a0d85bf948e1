"""What every trainer of a stage shares: phases, hooks, checkpoints, resuming, evaluation."""

import gc
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.solver.build import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.registry import Registry
from torch import nn

from cupre_d2.checkpoint.loading import CellCheckpointer, load_initial_weights
from cupre_d2.data.loaders import build_test_loader
from cupre_d2.engine.progress import ProgressPrinter, StageClock
from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
from cupre_d2.evaluation.overlays import OverlayWriter
from cupre_d2.solver.l2_sp import L2SP

TRAINER_REGISTRY = Registry("TRAINER")
TRAINER_REGISTRY.__doc__ = "The trainers a stage may name in its config's TRAINER; called with the stage's config."

LOG_PERIOD = 20
BACKBONE_PREFIX = "backbone.bottom_up."


class RegularizedModel(nn.Module):
    """Adds the L2-SP term to a model's losses, as `loss_l2sp`, so that it is logged on its own."""

    def __init__(self, model: nn.Module, l2_sp: L2SP) -> None:
        super().__init__()
        self.model = model
        self.l2_sp = l2_sp

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**self.model(batched_inputs), "loss_l2sp": self.l2_sp.loss()}


def build_evaluator(cfg: CfgNode, name: str) -> CellCOCOEvaluator:
    """The evaluator of a data set of DATASETS.TEST; raises ConfigError for limits that cannot be."""
    return CellCOCOEvaluator(
        name,
        max_dets=cfg.TEST.CELL_COCO.MAX_DETS,
        area_limits=cfg.TEST.CELL_COCO.AREA_LIMITS,
        output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", name),
    )


@dataclass
class Phase:
    """One kind of training step: a model and its data (Detectron2's SimpleTrainer) with its own schedule."""

    stepper: SimpleTrainer
    scheduler: Any

    @classmethod
    def build(cls, cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer, l2_sp: L2SP | None) -> "Phase":
        """The data are set later, when it is known where training starts (`stepper.reset_data_loader`)."""
        network = create_ddp_model(model, broadcast_buffers=False)
        network = RegularizedModel(network, l2_sp) if l2_sp else network
        stepper = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(network, None, optimizer)
        return cls(stepper, build_lr_scheduler(cfg, optimizer))

    def run_step(self, iteration: int, trainer: "StageTrainer") -> None:
        self.stepper.iter = iteration
        self.stepper.run_step()
        learning_rate = self.stepper.optimizer.param_groups[0]["lr"]
        trainer.storage.put_scalar("lr", learning_rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {"stepper": self.stepper.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stepper.load_state_dict(state["stepper"])
        self.scheduler.load_state_dict(state["scheduler"])


class StageTrainer(TrainerBase):
    """Trains one stage. Subclasses build the phases and say which one an iteration belongs to.

    Attributes:
        model: what is saved under "model" in a checkpoint, and so what the next stage starts from.
        phases: by name; each has an optimizer and a schedule of its own.
        clock: counts the seconds of training over all restarts.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, phases: dict[str, Phase], max_iter: int, **checkpointables: Any
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.phases = phases
        self.max_iter = max_iter
        self.clock = StageClock()
        self._running_phase = ""
        self.checkpointer = CellCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            trainer=weakref.proxy(self),
            **checkpointables,
        )

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        """Checks the stage's input without building anything that trains, and returns its number of iterations.

        Raises:
            CupreError: input that would fail later.
        """
        raise NotImplementedError

    def phase_name(self) -> str:
        """The phase that `self.iter` belongs to."""
        raise NotImplementedError

    def start_phase(self, name: str) -> None:
        """Called at the first step, also after a restart, and whenever the phase changes: sets its data loader."""
        raise NotImplementedError

    def position(self) -> str:
        """Where in the stage training stands, for people; "" when the iteration says it all."""
        return ""

    def resume_or_load(self) -> None:
        """Goes on from the last checkpoint in OUTPUT_DIR, or starts from MODEL.WEIGHTS and MODEL.BACKBONE_WEIGHTS."""
        if self.checkpointer.has_checkpoint():
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = self.iter + 1
        else:
            if self.cfg.MODEL.WEIGHTS:
                load_initial_weights(self.model, self.cfg.MODEL.WEIGHTS)
            if self.cfg.MODEL.BACKBONE_WEIGHTS:
                load_initial_weights(self.model, self.cfg.MODEL.BACKBONE_WEIGHTS, only_prefix=BACKBONE_PREFIX)
            self.after_initial_weights()
        if self.cfg.SEED >= 0:
            # A restarted run must not draw again the images and augmentations that it has already seen.
            seed_all_rng(self.cfg.SEED + comm.get_rank() + self.start_iter)

    def after_initial_weights(self) -> None:
        """For state that derives from the initial weights; not called when resuming, where it is loaded."""

    def train_stage(self, writers: list[EventWriter]) -> None:
        """Trains to the end of the stage; does nothing when a checkpoint of the last iteration was loaded."""
        if self.start_iter < self.max_iter:
            self.register_hooks(self.build_hooks(writers))
            self.train(self.start_iter, self.max_iter)
            self._release_loaders()

    def _release_loaders(self) -> None:
        """Ends the loaders' processes, which hold on to the memory that this one had when they were forked."""
        for phase in self.phases.values():
            phase.stepper.reset_data_loader(lambda: None)
        gc.collect()

    def build_hooks(self, writers: list[EventWriter]) -> list[HookBase]:
        built: list[HookBase] = [hooks.IterationTimer(), self.clock]
        if comm.is_main_process():
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD))
        built.append(hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.test, eval_after_train=False))
        if comm.is_main_process():
            printer = ProgressPrinter(LOG_PERIOD, weakref.proxy(self))
            files = [
                JSONWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")),
                TensorboardXWriter(self.cfg.OUTPUT_DIR),
            ]
            built.append(hooks.PeriodicWriter([printer, *writers, *files], period=LOG_PERIOD))
        return built

    def run_step(self) -> None:
        name = self.phase_name()
        if name != self._running_phase:
            self.start_phase(name)
            self._running_phase = name
        self.phases[name].run_step(self.iter, self)

    def state_dict(self) -> dict[str, Any]:
        phases = {name: phase.state_dict() for name, phase in self.phases.items()}
        return {**super().state_dict(), "clock": self.clock.snapshot(), "phases": phases}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.clock.restore(state_dict["clock"])
        for name, phase in self.phases.items():
            phase.load_state_dict(state_dict["phases"][name])

    def test(self) -> dict[str, Any]:
        """Evaluates on DATASETS.TEST: {dataset: {"bbox" or "segm": {metric: value}}}; empty on other processes."""
        results: dict[str, Any] = {}
        modes = {module: module.training for module in self.model.modules()}
        for name in self.cfg.DATASETS.TEST:
            evaluators: list[Any] = [build_evaluator(self.cfg, name)]
            if self.cfg.TEST.OVERLAYS:
                evaluators.append(OverlayWriter(name, self.cfg.TEST.OVERLAYS, self.cfg.OUTPUT_DIR))
            loader = build_test_loader(self.cfg, name)
            results[name] = inference_on_dataset(self.model, loader, DatasetEvaluators(evaluators))
        for module, training in modes.items():
            module.training = training
        return results if comm.is_main_process() else {}
