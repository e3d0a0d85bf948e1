"""Momentum contrast (He et al. 2020, MoCo; Chen et al. 2020, MoCo v2) over a Detectron2 backbone."""

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.layers import revert_sync_batchnorm

logger = logging.getLogger(__name__)

# Images that a batch norm's statistics are taken over, at least.
SMALLEST_SPLIT = 4


def info_nce_logits(query: torch.Tensor, key: torch.Tensor, negatives: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits [q·k, q·negatives] / T, whose cross-entropy with target 0 is InfoNCE (MoCo, eq. 1).

    The positive stands in the denominator, as in MoCo; CUPre's eq. 6 leaves it out, which we take for a slip, as CUPre
    names MoCo as its method.

    Args:
        query, key: N x D, L2-normalised.
        negatives: K x D, L2-normalised.

    Returns:
        N x (1 + K).
    """
    positive = (query * key).sum(1, keepdim=True)
    return torch.cat([positive, query @ negatives.T], dim=1) / temperature


def embedding_std(embeddings: torch.Tensor) -> torch.Tensor:
    """Collapse signal of N x D unit vectors: mean over dimensions of their standard deviation, times sqrt(D).

    About 1 for embeddings spread over the sphere, 0 when all are the same.
    """
    return embeddings.std(0, unbiased=False).mean() * math.sqrt(embeddings.shape[1])


def contrastive_accuracy(logits: torch.Tensor) -> torch.Tensor:
    """Share, 0..1, of the rows of N x (1 + K) logits whose positive, in column 0, is above every negative.

    A tie counts as a miss: a collapsed encoder, to which all images are alike, must not read as a perfect one.
    """
    return (logits[:, 0] > logits[:, 1:].amax(1)).float().mean()


def build_projector(kind: str, width: int, dim: int) -> nn.Module:
    """MoCo's head: "linear" (v1) or "mlp" (v2: one hidden layer as wide as the features)."""
    if kind == "linear":
        return nn.Linear(width, dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
    raise ConfigError(f"MODEL.MOCO.PROJECTOR {kind!r}: expected linear or mlp")


@META_ARCH_REGISTRY.register()
class MoCo(nn.Module):
    """Learns a backbone from two views of each image.

    The query encoder is held as `backbone.bottom_up`, so that its checkpoint loads into a detector. It may be a
    detector's own backbone (AMT²): it is shared, never copied. The key encoder follows it by an exponential moving
    average of the parameters; batch-norm statistics are its own, as published. Over several processes the keys are
    gathered into one queue, equal on all, for which their batches must be of one size.

    With batch norms, query and key of an image must not share the images that their statistics are taken over, or the
    statistics would give the pair away (MoCo, §3.3). Over several processes the key views are shuffled among them, as
    published; in a single one both encoders see the batch in `bn_splits` parts, the keys' parts drawn at random. Where the
    query encoder's batch norms are synchronised, which the published ones are not, its statistics are of all processes'
    images, a key's still of its own process's share. Other norms look at one image at a time: nothing is shuffled or split.

    Args:
        query_encoder: maps N x 3 x H x W to {feature: map}; the coarsest feature, globally pooled, is used.
        dim: length of an embedding.
        queue_size: keys in the queue; any number, the queue is a ring.
        momentum: of the key encoder, in [0, 1].
        temperature: of InfoNCE, above 0.
        projector: "linear" or "mlp".
        bn_splits: parts of a batch; fewer where they would have less than SMALLEST_SPLIT images.
        forwards_per_step: calls of `forward` in training that make one step of the optimizer (gradient accumulation). The
            key encoder follows before the first, the keys enter the queue after the last.
        pixel_mean, pixel_std: three values each, on the scale 0..255.

    Raises:
        ConfigError: a value outside its range.
    """

    queue: torch.Tensor
    queue_pointer: torch.Tensor
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        query_encoder: Backbone,
        dim: int = 128,
        queue_size: int = 4096,
        momentum: float = 0.999,
        temperature: float = 0.2,
        projector: str = "mlp",
        bn_splits: int = 8,
        forwards_per_step: int = 1,
        pixel_mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if queue_size < 1 or dim < 1:
            raise ConfigError(f"MODEL.MOCO.QUEUE_SIZE {queue_size}, MODEL.MOCO.DIM {dim}: expected at least 1")
        if not 0 <= momentum <= 1:
            raise ConfigError(f"MODEL.MOCO.MOMENTUM {momentum}: expected a number from 0 to 1")
        if not temperature > 0:
            raise ConfigError(f"MODEL.MOCO.TEMPERATURE {temperature}: expected a positive number")
        if bn_splits < 1 or forwards_per_step < 1:
            given = f"MODEL.MOCO.BN_SPLITS {bn_splits}, SOLVER.ACCUMULATE {forwards_per_step}"
            raise ConfigError(f"{given}: expected at least 1")
        shapes = query_encoder.output_shape()
        self.feature = max(shapes, key=lambda name: shapes[name].stride)
        self.momentum = momentum
        self.temperature = temperature
        self.bn_splits = bn_splits
        self.forwards_per_step = forwards_per_step
        self._new_keys: list[torch.Tensor] = []
        self._batch_norms = any(isinstance(module, _BatchNorm) for module in query_encoder.modules())
        self.backbone = nn.ModuleDict({"bottom_up": query_encoder})
        self.projector = build_projector(projector, shapes[self.feature].channels, dim)
        # Its statistics are of the shuffled views that this process has: shared by all, the query's would be the same.
        self.key_encoder = revert_sync_batchnorm(copy.deepcopy(query_encoder), NaiveSyncBatchNorm).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        # The published queue starts with random keys: InfoNCE has its full number of negatives from the first step.
        # Several processes are to take the first one's, which DistributedDataParallel alone does for weights only; see
        # engine.distributed.
        self.register_buffer("queue", functional.normalize(torch.randn(queue_size, dim), dim=1))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, query_encoder: Backbone | None = None) -> dict[str, Any]:
        """`query_encoder`: an existing network to share; None builds the config's backbone, without its neck."""
        if query_encoder is None:
            backbone = build_backbone(cfg)
            query_encoder = getattr(backbone, "bottom_up", backbone)
        return {
            "query_encoder": query_encoder,
            **{key.lower(): value for key, value in cfg.MODEL.MOCO.items()},
            "forwards_per_step": cfg.SOLVER.ACCUMULATE,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        }

    @torch.no_grad()
    def reset_key_encoder(self) -> None:
        """Makes the key encoder equal to the query encoder; to be called when weights were loaded into the latter."""
        self.key_encoder.load_state_dict(self.backbone["bottom_up"].state_dict())
        self.key_projector.load_state_dict(self.projector.state_dict())

    def warn_if_queue_exceeds(self, dataset_size: int) -> None:
        """Logs that a queue longer than the data set holds older keys of the positive image among its negatives."""
        if len(self.queue) > dataset_size:
            logger.warning(
                f"MODEL.MOCO.QUEUE_SIZE {len(self.queue)} exceeds the {dataset_size} unlabeled images: "
                "the negatives of an image then hold its own older keys"
            )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """In training one MoCo step up to the loss, which moves the key encoder and the queue; else embeddings.

        Args:
            batched_inputs: dicts with the views "query" and, in training, "key", each 3 x H x W on the scale 0..255, all
                views of one name of one size.

        Returns:
            In training {"loss_contrastive": scalar}; logs contrastive_accuracy (0..1) and embedding_std to the
            EventStorage, if any. Else, for each input, {"embedding": unit vector of length D of its "query"}.
        """
        query_views = self._stack(batched_inputs, "query")
        query_side = self.backbone["bottom_up"], self.projector
        if not self.training:
            return [{"embedding": embedding} for embedding in self._embed(*query_side, query_views)]
        query = torch.cat([self._embed(*query_side, part) for part in self._split(query_views)])
        with torch.no_grad():
            if not self._new_keys:
                self._follow()
            key = self._keys(self._stack(batched_inputs, "key"))
        # In half precision, similarities lose what InfoNCE compares.
        with torch.autocast(query.device.type, enabled=False):
            logits = info_nce_logits(query, key, self.queue.clone(), self.temperature)
        loss = functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        if has_event_storage():
            storage = get_event_storage()
            storage.put_scalar("contrastive_accuracy", contrastive_accuracy(logits.detach()).item())
            storage.put_scalar("embedding_std", embedding_std(query.detach()).item())
        self._new_keys.append(key)
        if len(self._new_keys) == self.forwards_per_step:
            self._enqueue(_gather(torch.cat(self._new_keys)))
            self._new_keys.clear()
        return {"loss_contrastive": loss}

    def _split(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        if not self._batch_norms or comm.get_world_size() > 1:
            return [images]
        parts = max(1, min(self.bn_splits, len(images) // SMALLEST_SPLIT))
        return images.tensor_split(parts)

    def _keys(self, images: torch.Tensor) -> torch.Tensor:
        """N x D keys of this process's views, encoded among views that others drew."""
        encoders = self.key_encoder, self.key_projector
        if not self._batch_norms:
            return self._embed(*encoders, images)
        pooled = _gather(images)
        order = torch.randperm(len(pooled), device=images.device)
        if comm.get_world_size() > 1:
            torch.distributed.broadcast(order, 0)
        own = slice(comm.get_rank() * len(images), (comm.get_rank() + 1) * len(images))
        encoded = torch.cat([self._embed(*encoders, part) for part in self._split(pooled[order[own]])])
        keys = _gather(encoded)
        return keys[order.argsort()][own]

    def _stack(self, batched_inputs: list[dict[str, Any]], view: str) -> torch.Tensor:
        images = torch.stack([inputs[view] for inputs in batched_inputs]).to(self.pixel_mean.device)
        return (images - self.pixel_mean) / self.pixel_std

    def _embed(self, encoder: nn.Module, projector: nn.Module, images: torch.Tensor) -> torch.Tensor:
        pooled = encoder(images)[self.feature].mean((2, 3))
        return functional.normalize(projector(pooled).float(), dim=1)

    @torch.no_grad()
    def _follow(self) -> None:
        pairs = ((self.backbone["bottom_up"], self.key_encoder), (self.projector, self.key_projector))
        for leader, follower in pairs:
            for theirs, ours in zip(leader.parameters(), follower.parameters(), strict=True):
                ours.lerp_(theirs, 1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: torch.Tensor) -> None:
        size = len(self.queue)
        start = int(self.queue_pointer) + max(len(keys) - size, 0)
        keys = keys[-size:]
        places = (start + torch.arange(len(keys), device=self.queue.device)) % size
        self.queue[places] = keys
        self.queue_pointer.fill_((start + len(keys)) % size)


def _gather(keys: torch.Tensor) -> torch.Tensor:
    if comm.get_world_size() == 1:
        return keys
    gathered = [torch.empty_like(keys) for _ in range(comm.get_world_size())]
    torch.distributed.all_gather(gathered, keys.contiguous())
    return torch.cat(gathered)
