"""AMT²: rounds that alternate MoCo on unlabeled cells with instance segmentation on COCO (CUPre §III)."""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from detectron2.config import CfgNode
from detectron2.utils import comm

from cupre_d2.data.loaders import (
    Record,
    build_detection_loader,
    build_view_loader,
    shard,
    training_records,
    unlabeled_records,
)
from cupre_d2.engine.distributed import share_buffers
from cupre_d2.engine.preflight import check_detection, check_network, check_settings, check_unlabeled
from cupre_d2.engine.rules import check_solver
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY, Phase, StageTrainer
from cupre_d2.engine.trainers import build_network, trainable_here
from cupre_d2.errors import ConfigError
from cupre_d2.modeling.meta_arch.moco import MoCo
from cupre_d2.solver.build import backbone_decay_parameters, build_optimizer
from cupre_d2.solver.l2_sp import L2SP

logger = logging.getLogger(__name__)

POLICIES = ("l2sp", "free", "frozen")


class Position(NamedTuple):
    """Where an iteration of AMT² lies; all count from 0."""

    round: int
    phase: Literal["moco", "coco"]
    iteration: int


@dataclass(frozen=True)
class Schedule:
    """Lengths of AMT²; everything about where training stands follows from the iteration."""

    rounds: int
    moco_iters: int
    coco_iters: int

    @classmethod
    def from_config(cls, cfg: CfgNode, num_unlabeled: int, num_annotated: int) -> "Schedule":
        """Fills in phases of length 0: one pass over the unlabeled images, one over a shard.

        The paper says that a round uses all cell images and one shard, not how often; we take once.
        """
        shard_size = num_annotated / cfg.AMT2.ROUNDS
        return cls(
            cfg.AMT2.ROUNDS,
            cfg.AMT2.MOCO_ITERS or math.ceil(num_unlabeled / cfg.AMT2.MOCO_SOLVER.IMS_PER_BATCH),
            cfg.AMT2.COCO_ITERS or math.ceil(shard_size / cfg.SOLVER.IMS_PER_BATCH),
        )

    @property
    def round_length(self) -> int:
        return self.moco_iters + self.coco_iters

    @property
    def total(self) -> int:
        return self.rounds * self.round_length

    def locate(self, iteration: int) -> Position:
        round_, within = divmod(iteration, self.round_length)
        if within < self.moco_iters:
            return Position(round_, "moco", within)
        return Position(round_, "coco", within - self.moco_iters)

    def ends_phase(self, iteration: int) -> bool:
        return self.locate(iteration)[:2] != self.locate(iteration + 1)[:2]


def backbone_policy(cfg: CfgNode) -> str:
    """The backbone's treatment in the COCO phase: "l2sp", "free" (CUPre−−) or "frozen" (CUPre §V).

    SOLVER.L2SP.ENABLED False turns "l2sp" into "free".

    Raises:
        ConfigError: AMT2.BACKBONE_POLICY is none of them.
    """
    policy = cfg.AMT2.BACKBONE_POLICY
    if policy not in POLICIES:
        raise ConfigError(f"AMT2.BACKBONE_POLICY {policy!r}: expected one of {', '.join(POLICIES)}")
    return "free" if policy == "l2sp" and not cfg.SOLVER.L2SP.ENABLED else policy


def moco_phase_config(cfg: CfgNode, total_iterations: int) -> CfgNode:
    """The stage's config with AMT2.MOCO_SOLVER in SOLVER's place."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.merge_from_other_cfg(cfg.AMT2.MOCO_SOLVER)
    cfg.SOLVER.MAX_ITER = total_iterations
    cfg.SOLVER.STEPS = ()
    return cfg


def moco_network_config(cfg: CfgNode) -> CfgNode:
    """The stage's config with MoCo in its detector's place."""
    cfg = moco_phase_config(cfg, 1)
    cfg.MODEL.META_ARCHITECTURE = "MoCo"
    return cfg


def coco_phase_config(cfg: CfgNode, total_iterations: int) -> CfgNode:
    """The stage's config, its schedule as long as all COCO phases together."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = total_iterations
    return cfg


@TRAINER_REGISTRY.register()
class AlternatingTrainer(StageTrainer):
    """AMT²: AMT2.ROUNDS times a MoCo phase on DATASETS.UNLABELED, then a COCO phase on one shard of DATASETS.TRAIN.

    The detector's bottom-up backbone is MoCo's query encoder: the same tensors, nothing is copied. After a MoCo phase
    the backbone becomes the anchor weights w⁰ that L2-SP pulls to in the COCO phase that follows. Queue, key encoder,
    projector, optimizers and schedules (one of each a phase, spanning all rounds) live on from round to round; the
    paper does not say whether its schedules restart.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._annotated = training_records(cfg)
        self._unlabeled = unlabeled_records(cfg)
        self.schedule = Schedule.from_config(cfg, len(self._unlabeled), len(self._annotated))
        self.policy = backbone_policy(cfg)
        self._moco_cfg = moco_phase_config(cfg, self.schedule.rounds * self.schedule.moco_iters)
        self._coco_cfg = coco_phase_config(cfg, self.schedule.rounds * self.schedule.coco_iters)

        detector = build_network(cfg)
        self.backbone = detector.get_submodule("backbone.bottom_up")
        moco = MoCo(self._moco_cfg, query_encoder=self.backbone).to(cfg.MODEL.DEVICE)
        self.moco = cast(MoCo, trainable_here(cfg, moco))
        self.moco.warn_if_queue_exceeds(len(self._unlabeled))
        self._backbone_parameters = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

        decayed = backbone_decay_parameters(detector) if self.policy == "l2sp" else {}
        self.l2_sp = L2SP(decayed, cfg.SOLVER.L2SP.ALPHA, cfg.SOLVER.L2SP.WEIGHT) if decayed else None
        moco_phase = Phase.build(0, self._moco_cfg, self.moco, build_optimizer(self._moco_cfg, self.moco))
        # What is frozen when the phase is built is no part of it: no gradient is exchanged or kept for it.
        self._train_backbone(self.policy != "frozen")
        optimizer = build_optimizer(self._coco_cfg, detector, exclude_decay=decayed.values())
        phases = {"moco": moco_phase, "coco": Phase.build(1, self._coco_cfg, detector, optimizer, self.l2_sp)}
        extra: dict[str, Any] = {"l2_sp": self.l2_sp} if self.l2_sp else {}
        super().__init__(cfg, detector, phases, self.schedule.total, moco=self.moco, **extra)

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        check_settings(cfg)
        check_solver(cfg.AMT2.MOCO_SOLVER, "AMT2.MOCO_SOLVER", comm.get_world_size())
        check_detection(cfg)
        check_unlabeled(cfg)
        check_network(moco_network_config(cfg))
        backbone_policy(cfg)
        annotated, unlabeled = training_records(cfg), unlabeled_records(cfg)
        shard(annotated, 0, cfg.AMT2.ROUNDS, cfg.SEED)
        return Schedule.from_config(cfg, len(unlabeled), len(annotated)).total

    def after_initial_weights(self) -> None:
        self.moco.reset_key_encoder()

    def phase_name(self) -> str:
        return self.schedule.locate(self.iter).phase

    def position(self) -> str:
        at = self.schedule.locate(self.iter)
        return f"round {at.round + 1}/{self.schedule.rounds} {at.phase}"

    def start_phase(self, name: str) -> None:
        at = self.schedule.locate(self.iter)
        logger.info(f"AMT² {self.position()}: from iteration {at.iteration} of the phase")
        if name == "moco":
            self._start_moco(at)
        else:
            self._start_coco(at)

    def _start_moco(self, at: Position) -> None:
        self._train_backbone(True)
        self.moco.train()
        stepper = self.phases["moco"].stepper
        if stepper.data_loader is None:
            done = at.round * self.schedule.moco_iters + at.iteration
            seed = (self.seed, 0)
            stepper.reset_data_loader(lambda: build_view_loader(self._moco_cfg, self._unlabeled, seed, done))

    def _start_coco(self, at: Position) -> None:
        self.model.train()
        self._train_backbone(self.policy != "frozen")
        # Each process has batch-norm statistics of its own, of which checkpoints hold the first one's.
        share_buffers(self.backbone)
        if self.l2_sp and at.iteration == 0:
            self.l2_sp.set_anchor_weights()
        records: list[Record] = shard(self._annotated, at.round, self.schedule.rounds, self.cfg.SEED)
        logger.info(f"AMT² round {at.round + 1}: shard of {len(records)} of {len(self._annotated)} annotated images")
        seed = (self.seed, 1, at.round)
        stepper = self.phases["coco"].stepper
        stepper.reset_data_loader(lambda: build_detection_loader(self._coco_cfg, records, seed, at.iteration))

    def _train_backbone(self, trains: bool) -> None:
        for parameter in self._backbone_parameters:
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None
        self.backbone.train(trains)

    def checkpoint_name(self) -> str:
        if self.schedule.ends_phase(self.iter) and self.iter + 1 < self.max_iter:
            at = self.schedule.locate(self.iter)
            return f"round{at.round + 1:02d}_{at.phase}_end"
        return super().checkpoint_name()
