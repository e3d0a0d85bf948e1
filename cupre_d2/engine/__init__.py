"""Stages, pipelines and the trainers that run them; importing this registers the trainers."""

from cupre_d2.engine.alternating import AlternatingTrainer
from cupre_d2.engine.cluster_hook import ClusterHook
from cupre_d2.engine.clustering import ClusteringTrainer
from cupre_d2.engine.pipeline import train
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY, StageTrainer
from cupre_d2.engine.trainers import DetectionTrainer, MoCoTrainer

__all__ = [
    "TRAINER_REGISTRY",
    "AlternatingTrainer",
    "ClusterHook",
    "ClusteringTrainer",
    "DetectionTrainer",
    "MoCoTrainer",
    "StageTrainer",
    "train",
]
