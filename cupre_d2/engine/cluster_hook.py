"""Clusters of unlabeled images by the backbone of any trainer, while it trains."""

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from cupre_d2.data.loaders import unlabeled_records
from cupre_d2.data.samples import Samples, draw_samples
from cupre_d2.engine.pseudo_labels import PseudoLabels, pseudo_labels
from cupre_d2.modeling.latent import PooledLatent, encoder_of
from cupre_d2.randomness import derive

DRAWING, CLUSTERING = range(2)


class ClusterHook(HookBase):
    """Clusters samples of DATASETS.UNLABELED by the backbone of `trainer.model`, and logs what the clusters look like.

    For any trainer whose model has a `backbone.bottom_up`: MoCoTrainer's, AlternatingTrainer's, DetectionTrainer's. The
    samples are the same each time, so that figures can be compared; training goes on as it would without the hook.

        trainer.register_hooks([ClusterHook(cfg, period=500)])

    Args:
        cfg: reads CLUSTERING (not CROP, PERIOD and NORM_POLICY), DATASETS.UNLABELED, INPUT and MODEL.PIXEL_MEAN and _STD.
        period: iterations between clusterings, at least 1; there is one after the last iteration too.

    Attributes:
        last: the clusters found last, None before; "clusters/..." of the trainer's storage are their statistics.

    Raises:
        DatasetError, ConfigError, ClusteringError: see `unlabeled_records`, `encoder_of` and `pseudo_labels`.
    """

    def __init__(self, cfg: CfgNode, period: int) -> None:
        self._cfg = cfg
        self._period = period
        self._seed = max(cfg.SEED, 0)
        self._samples: Samples | None = None
        self.last: PseudoLabels | None = None

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period and done < self.trainer.max_iter:
            return
        if self._samples is None:
            records, count = unlabeled_records(self._cfg), self._cfg.CLUSTERING.SAMPLES
            self._samples = draw_samples(self._cfg, records, count, (self._seed, DRAWING))
        encoder = encoder_of(self.trainer.model)
        latent = PooledLatent(encoder, self._cfg.MODEL.PIXEL_MEAN, self._cfg.MODEL.PIXEL_STD).to(self._cfg.MODEL.DEVICE)
        self.last = pseudo_labels(latent, self._samples, self._cfg.CLUSTERING, derive(self._seed, CLUSTERING))
        statistics = {f"clusters/{name}": value for name, value in self.last.statistics.items()}
        self.trainer.storage.put_scalars(smoothing_hint=False, **statistics)
