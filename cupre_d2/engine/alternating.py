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
from cupre_d2.engine.phases import OptimizerPhase
from cupre_d2.engine.preflight import check_detection, check_network, check_settings, check_unlabeled
from cupre_d2.engine.rules import check_solver
from cupre_d2.engine.single_phase import build_network, trainable_here
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY, StageTrainer
from cupre_d2.errors import ConfigError
from cupre_d2.modeling.meta_arch.moco import MoCo
from cupre_d2.solver.build import backbone_decay_parameters, build_optimizer
from cupre_d2.solver.l2_sp import L2SP

logger = logging.getLogger(__name__)


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
        """Fills in phases that the config gives the length 0: one pass over the unlabeled images, one over a shard.

        The paper says that a round uses all cell images and one shard, not how often; we take once. With AMT2.MOCO False
        `moco_iters` is 0, and no iteration is MoCo's.
        """
        shard_size = num_annotated / cfg.AMT2.ROUNDS
        moco_iters = cfg.AMT2.MOCO_ITERS or math.ceil(num_unlabeled / cfg.AMT2.MOCO_SOLVER.IMS_PER_BATCH)
        coco_iters = cfg.AMT2.COCO_ITERS or math.ceil(shard_size / cfg.SOLVER.IMS_PER_BATCH)
        return cls(cfg.AMT2.ROUNDS, moco_iters if cfg.AMT2.MOCO else 0, coco_iters)

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


def coco_phase_config(cfg: CfgNode, total_iterations: int) -> CfgNode:
    """The stage's config, its schedule as long as all COCO phases together."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = total_iterations
    return cfg


def moco_phase_config(cfg: CfgNode, total_iterations: int) -> CfgNode:
    """The stage's config with AMT2.MOCO_SOLVER in SOLVER's place, its schedule as long as all MoCo phases together."""
    cfg = coco_phase_config(cfg, total_iterations)
    cfg.SOLVER.merge_from_other_cfg(cfg.AMT2.MOCO_SOLVER)
    return cfg


@TRAINER_REGISTRY.register()
class AlternatingTrainer(StageTrainer):
    """AMT², CUPre's Alternating Multi-Task pre-training (§III).

        split DATASETS.TRAIN (COCO) into AMT2.ROUNDS shards at random
        for shard in shards:                                        # a round
            repeat AMT2.MOCO_ITERS times:                           # the MoCo phase, under AMT2.MOCO_SOLVER
                query, key = two views of a batch of DATASETS.UNLABELED (cells)
                step on InfoNCE(backbone(query), key_encoder(key), queue)
                key_encoder follows the backbone; key joins the queue
            w0 = weights of the backbone                            # the anchor weights
            repeat AMT2.COCO_ITERS times:                           # the COCO phase, under SOLVER
                step on detector(batch of shard) + λ (α |w - w0|² + (1 - α) |w|²)    # w: weights of the backbone

    The detector's bottom-up backbone is MoCo's query encoder: the same tensors, nothing is copied. Queue, key encoder,
    projector, optimizers and schedules (one of each a phase, spanning all rounds) live on from round to round; the
    paper does not say whether its schedules restart.

    SOLVER.L2SP.ENABLED False leaves the last term out (CUPre−−), and AMT2.FREEZE_BACKBONE keeps the backbone as MoCo left
    it. AMT2.MOCO False leaves out the MoCo phases: the control that learns from the same shards for as many iterations.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._annotated = training_records(cfg)
        self._unlabeled = unlabeled_records(cfg) if cfg.AMT2.MOCO else []
        self.schedule = Schedule.from_config(cfg, len(self._unlabeled), len(self._annotated))
        self._moco_cfg = moco_phase_config(cfg, self.schedule.rounds * self.schedule.moco_iters)
        self._coco_cfg = coco_phase_config(cfg, self.schedule.rounds * self.schedule.coco_iters)

        detector = build_network(cfg)
        self.backbone = detector.get_submodule("backbone.bottom_up")
        self._views_are_set = False
        self.moco: MoCo | None = None
        phases: dict[str, OptimizerPhase] = {}
        parts: dict[str, Any] = {}
        if cfg.AMT2.MOCO:
            moco = MoCo(self._moco_cfg, query_encoder=self.backbone).to(cfg.MODEL.DEVICE)
            self.moco = cast(MoCo, trainable_here(cfg, moco))
            self.moco.warn_if_queue_exceeds(len(self._unlabeled))
            optimizer = build_optimizer(self._moco_cfg, self.moco)
            phases["moco"] = OptimizerPhase.build(0, self._moco_cfg, self.moco, optimizer, prefix="moco/")
            parts["moco"] = self.moco

        self._backbone_parameters = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        decayed = backbone_decay_parameters(detector) if cfg.SOLVER.L2SP.ENABLED else {}
        self.l2_sp = L2SP(decayed, cfg.SOLVER.L2SP.ALPHA, cfg.SOLVER.L2SP.WEIGHT) if decayed else None
        if self.l2_sp:
            parts["l2_sp"] = self.l2_sp
        # What is frozen when the phase is built is no part of it: no gradient is exchanged or kept for it.
        self._train_backbone(not cfg.AMT2.FREEZE_BACKBONE)
        optimizer = build_optimizer(self._coco_cfg, detector, exclude_decay=decayed.values())
        prefix = "coco/" if phases else ""
        phases["coco"] = OptimizerPhase.build(1, self._coco_cfg, detector, optimizer, self.l2_sp, prefix)
        super().__init__(cfg, detector, phases, self.schedule.total, **parts)

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        check_settings(cfg)
        check_detection(cfg)
        if cfg.AMT2.FREEZE_BACKBONE and cfg.SOLVER.L2SP.ENABLED:
            raise ConfigError(
                "AMT2.FREEZE_BACKBONE True and SOLVER.L2SP.ENABLED True: what is frozen needs no L2-SP; expected one of them"
            )
        if cfg.AMT2.MOCO:
            check_solver(cfg.AMT2.MOCO_SOLVER, "AMT2.MOCO_SOLVER", comm.get_world_size())
            check_unlabeled(cfg)
            moco_cfg = moco_phase_config(cfg, 1)
            moco_cfg.MODEL.META_ARCHITECTURE = "MoCo"
            check_network(moco_cfg)
        annotated, unlabeled = training_records(cfg), unlabeled_records(cfg) if cfg.AMT2.MOCO else []
        shard(annotated, 0, cfg.AMT2.ROUNDS, cfg.SEED)
        return Schedule.from_config(cfg, len(unlabeled), len(annotated)).total

    def after_initial_weights(self) -> None:
        if self.moco:
            self.moco.reset_key_encoder()

    def phase_name(self) -> str:
        return self.schedule.locate(self.iter).phase

    def round(self) -> int:
        return self.schedule.locate(self.iter).round

    def position(self) -> str:
        return f"round {self.round() + 1}/{self.schedule.rounds} {self.phase_name()}"

    def start_phase(self, name: str) -> None:
        at = self.schedule.locate(self.iter)
        logger.info(f"AMT² {self.position()}: from iteration {at.iteration} of the phase")
        if name == "moco":
            self._start_moco(at)
        else:
            self._start_coco(at)

    def _start_moco(self, at: Position) -> None:
        assert self.moco is not None
        self._train_backbone(True)
        self.moco.train()
        # One loader spans all rounds.
        if not self._views_are_set:
            done = at.round * self.schedule.moco_iters + at.iteration
            seed = (self.seed, 0)
            self.phases["moco"].reset_data_loader(lambda: build_view_loader(self._moco_cfg, self._unlabeled, seed, done))
            self._views_are_set = True

    def _start_coco(self, at: Position) -> None:
        self.model.train()
        self._train_backbone(not self.cfg.AMT2.FREEZE_BACKBONE)
        # Each process has batch-norm statistics of its own, of which checkpoints hold the first one's.
        share_buffers(self.backbone)
        if self.l2_sp and at.iteration == 0:
            self.l2_sp.set_anchor_weights()
        records: list[Record] = shard(self._annotated, at.round, self.schedule.rounds, self.cfg.SEED)
        logger.info(f"AMT² round {at.round + 1}: shard of {len(records)} of {len(self._annotated)} annotated images")
        seed = (self.seed, 1, at.round)
        self.phases["coco"].reset_data_loader(lambda: build_detection_loader(self._coco_cfg, records, seed, at.iteration))

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
