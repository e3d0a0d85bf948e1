"""Stages, pipelines and the trainers that run them; importing this registers the trainers."""

from cupre_d2.engine.alternating import AlternatingTrainer
from cupre_d2.engine.clustering import ClusteringTrainer
from cupre_d2.engine.phases import OptimizerPhase, Phase
from cupre_d2.engine.pipeline import train
from cupre_d2.engine.single_phase import DetectionTrainer, MoCoTrainer
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY, StageTrainer

__all__ = [
    "TRAINER_REGISTRY",
    "AlternatingTrainer",
    "ClusteringTrainer",
    "DetectionTrainer",
    "MoCoTrainer",
    "OptimizerPhase",
    "Phase",
    "StageTrainer",
    "train",
]
