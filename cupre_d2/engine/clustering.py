"""Deep clustering: the encoder of a segmentation network retrained on clusters of unlabeled images (paper 003)."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cupre_d2.data.loaders import Samples, build_sample_loader, draw_samples, unlabeled_records
from cupre_d2.engine.phases import OptimizerPhase
from cupre_d2.engine.preflight import check_network, check_settings, check_tests, check_unlabeled
from cupre_d2.engine.pseudo_labels import START_NODES, pseudo_labels
from cupre_d2.engine.single_phase import build_network
from cupre_d2.engine.stage_trainer import TRAINER_REGISTRY, StageTrainer
from cupre_d2.errors import ConfigError
from cupre_d2.modeling.latent import ClusterClassifier, PooledLatent, encoder_of
from cupre_d2.randomness import derive, seeded
from cupre_d2.solver.build import build_optimizer

logger = logging.getLogger(__name__)

# What random numbers are for; with the seed and the round they tell them apart.
DRAWING, CLUSTERING, LAYER, TRAINING = range(4)


class LabelStore:
    """The pseudo-labels of a round, as a part of a checkpoint."""

    def __init__(self) -> None:
        self.labels = torch.empty(0, dtype=torch.long)

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.labels = state["labels"]


@TRAINER_REGISTRY.register()
class ClusteringTrainer(StageTrainer):
    """Retrains the encoder of a SemanticWatershed network (MODEL.WEIGHTS) on clusters of DATASETS.UNLABELED.

    A round, as in the paper's clustering step: CLUSTERING.SAMPLES augmented crops are drawn; of each, the encoder's last map
    is averaged over its pixels; their CLUSTERING.COMPONENTS principal components are clustered; then the encoder, with a new
    linear layer on that average, is trained on random parts of the crops to tell the clusters apart. The paper has one round
    (CLUSTERING.PERIOD 0); with a period they alternate as in deep clustering (Caron et al. 2018), each from the encoder that
    the last one left, optimizer and schedule running on, the linear layer and its momentum anew.

    Decoder and predictor are no part of it and stay as they are, bit for bit. The checkpoint is that of the whole network,
    so that it is evaluated, and trained on, as before.

    Latents are taken with the batch norms' running statistics. What the encoder's batch norms do while it trains, which the
    paper does not say, is CLUSTERING.NORM_POLICY: "train", what happens where nobody thinks of it, gives the decoder maps of
    other statistics than it was trained with; "frozen" does not. Their scales and offsets train under both.

    A checkpoint holds the round's labels; the crops follow from the seed, and are drawn again.
    """

    def __init__(self, cfg: CfgNode) -> None:
        network = build_network(cfg)
        latent = PooledLatent(encoder_of(network), cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        self.classifier = ClusterClassifier(latent, cfg.CLUSTERING.CLUSTERS).to(cfg.MODEL.DEVICE)
        self._labels = LabelStore()
        self._optimizer = build_optimizer(cfg, self.classifier)
        phase = OptimizerPhase.build(0, cfg, self.classifier, self._optimizer)
        extra = {"linear": self.classifier.linear, "clusters": self._labels}
        super().__init__(cfg, network, {"clusters": phase}, cfg.SOLVER.MAX_ITER, **extra)

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        check_settings(cfg)
        check_clustering(cfg)
        check_unlabeled(cfg)
        check_tests(cfg)
        return cfg.SOLVER.MAX_ITER

    @property
    def round_length(self) -> int:
        return self.cfg.CLUSTERING.PERIOD or self.max_iter

    def phase_name(self) -> str:
        return "clusters"

    def position(self) -> str:
        rounds = -(-self.max_iter // self.round_length)
        return f"round {self.round() + 1}/{rounds}" if rounds > 1 else ""

    def round(self) -> int:
        return self.iter // self.round_length

    def start_phase(self, name: str) -> None:
        round_, done = divmod(self.iter, self.round_length)
        records = unlabeled_records(self.cfg)
        count = self.cfg.CLUSTERING.SAMPLES
        logger.info(f"clustering {self.position()}: drawing {count} samples of {len(records)} images")
        samples = draw_samples(self.cfg, records, count, (self.seed, DRAWING, round_))
        if done == 0:
            self._cluster(samples, round_)
        labels, seed = self._labels.labels.tolist(), (self.seed, TRAINING, round_)
        self.phases[name].reset_data_loader(lambda: build_sample_loader(self.cfg, samples, labels, seed, done))
        self.classifier.train()
        if self.cfg.CLUSTERING.NORM_POLICY == "frozen":
            for module in self.classifier.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _cluster(self, samples: Samples, round_: int) -> None:
        seed = derive(self.seed, CLUSTERING, round_)
        found = pseudo_labels(self.classifier.latent, samples, self.cfg.CLUSTERING, seed)
        # Checkpoints hold no arrays.
        self._labels.labels = torch.tensor(found.labels, dtype=torch.long)
        for name, value in found.statistics.items():
            self.storage.put_scalar(f"clusters/{name}", value, smoothing_hint=False)
        with seeded((self.seed, LAYER, round_)):
            fresh = nn.Linear(self.classifier.latent.channels, self.cfg.CLUSTERING.CLUSTERS)
        self.classifier.linear.load_state_dict(fresh.state_dict())
        for parameter in self.classifier.linear.parameters():
            self._optimizer.state.pop(parameter, None)


def check_clustering(cfg: CfgNode) -> None:
    """Raises ConfigError for keys that do not fit each other, each in its range by itself."""
    keys = cfg.CLUSTERING
    if cfg.MODEL.META_ARCHITECTURE != "SemanticWatershed":
        raise ConfigError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: {cfg.TRAINER} retrains SemanticWatershed")
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(f"MODEL.WEIGHTS: empty; {cfg.TRAINER} needs a segmentation network that was trained")
    if keys.CLUSTERS > keys.SAMPLES:
        raise ConfigError(f"CLUSTERING.CLUSTERS {keys.CLUSTERS}: expected at most CLUSTERING.SAMPLES ({keys.SAMPLES})")
    if keys.ALGORITHM == "growing_neural_gas" and keys.CLUSTERS < START_NODES:
        raise ConfigError(f"CLUSTERING.CLUSTERS {keys.CLUSTERS}: growing neural gas starts with {START_NODES} nodes")
    side = cfg.INPUT.CELL_AUGMENTATION.SIZE
    if side < keys.CROP:
        raise ConfigError(f"CLUSTERING.CROP {keys.CROP}: expected at most INPUT.CELL_AUGMENTATION.SIZE ({side})")
    channels = PooledLatent(encoder_of(check_network(cfg)), cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD).channels
    if min(channels, keys.SAMPLES) < keys.COMPONENTS:
        raise ConfigError(
            f"CLUSTERING.COMPONENTS {keys.COMPONENTS}: expected at most the channels of the latent ({channels}) "
            f"and CLUSTERING.SAMPLES ({keys.SAMPLES})"
        )
