"""Trainers of stages with one kind of step: detection, and MoCo."""

import logging
from typing import cast

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from cupre_d2.data.loaders import build_detection_loader, build_view_loader, training_records, unlabeled_records
from cupre_d2.engine.phases import OptimizerPhase
from cupre_d2.engine.preflight import check_detection, check_settings, check_tests, check_unlabeled
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY, StageTrainer
from cupre_d2.modeling.layers import revert_sync_batchnorm
from cupre_d2.modeling.meta_arch.moco import MoCo
from cupre_d2.solver.build import backbone_decay_parameters, build_optimizer
from cupre_d2.solver.l2_sp import L2SP

logger = logging.getLogger(__name__)


def build_network(cfg: CfgNode) -> nn.Module:
    """The config's meta-architecture, able to train here."""
    model = trainable_here(cfg, build_model(cfg))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(f"{cfg.MODEL.META_ARCHITECTURE}: {parameters / 1e6:.1f} M parameters")
    return model


def trainable_here(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Makes synchronised batch norms plain ones where they cannot train: in a single process, and on a CPU."""
    return revert_sync_batchnorm(model) if comm.get_world_size() == 1 or cfg.MODEL.DEVICE == "cpu" else model


@TRAINER_REGISTRY.register()
class DetectionTrainer(StageTrainer):
    """Instance segmentation on DATASETS.TRAIN: pre-training on COCO, fine-tuning on cells.

    With SOLVER.L2SP.ENABLED (CUPre++) the backbone is held near the weights the stage starts from.
    """

    def __init__(self, cfg: CfgNode) -> None:
        model = build_network(cfg)
        decayed = backbone_decay_parameters(model) if cfg.SOLVER.L2SP.ENABLED else {}
        self.l2_sp = L2SP(decayed, cfg.SOLVER.L2SP.ALPHA, cfg.SOLVER.L2SP.WEIGHT) if decayed else None
        optimizer = build_optimizer(cfg, model, exclude_decay=decayed.values())
        phase = OptimizerPhase.build(0, cfg, model, optimizer, self.l2_sp)
        extra = {"l2_sp": self.l2_sp} if self.l2_sp else {}
        super().__init__(cfg, model, {"detection": phase}, cfg.SOLVER.MAX_ITER, **extra)

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        check_settings(cfg)
        check_detection(cfg)
        training_records(cfg)
        return cfg.SOLVER.MAX_ITER

    def after_initial_weights(self) -> None:
        if self.l2_sp:
            self.l2_sp.set_anchor_weights()

    def phase_name(self) -> str:
        return "detection"

    def start_phase(self, name: str) -> None:
        loader = build_detection_loader(self.cfg, training_records(self.cfg), (self.seed,), self.iter)
        self.phases[name].reset_data_loader(lambda: loader)


@TRAINER_REGISTRY.register()
class MoCoTrainer(StageTrainer):
    """MoCo on DATASETS.UNLABELED; the checkpoint holds the query encoder under a detector's names."""

    def __init__(self, cfg: CfgNode) -> None:
        self.moco = cast(MoCo, build_network(cfg))
        phase = OptimizerPhase.build(0, cfg, self.moco, build_optimizer(cfg, self.moco))
        super().__init__(cfg, self.moco, {"moco": phase}, cfg.SOLVER.MAX_ITER)

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        check_settings(cfg)
        check_unlabeled(cfg)
        check_tests(cfg)
        return cfg.SOLVER.MAX_ITER

    def after_initial_weights(self) -> None:
        self.moco.reset_key_encoder()

    def phase_name(self) -> str:
        return "moco"

    def start_phase(self, name: str) -> None:
        records = unlabeled_records(self.cfg)
        self.moco.warn_if_queue_exceeds(len(records))
        loader = build_view_loader(self.cfg, records, (self.seed,), self.iter)
        self.phases[name].reset_data_loader(lambda: loader)
