"""Normalisation layers: Detectron2's, where batches may be small and processes few."""

import math

import torch
from detectron2.layers import get_norm as detectron2_get_norm
from detectron2.utils import comm
from torch import nn

from cupre_d2.errors import ConfigError

NORMS = ("BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN", "")


class TinyBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that, given one value a channel in training, uses its running statistics and leaves them as they are.

    Split attention normalises N x C x 1 x 1 maps: of a single image there is no variance to take, and torch raises.
    Same parameters and buffers as BatchNorm2d.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and input.numel() == input.shape[1]:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(input)


def get_norm(norm: str, channels: int, gn_groups: int = 32) -> nn.Module | None:
    """Detectron2's `get_norm`, with batch norms that train on one process, on a CPU and on one image.

    Args:
        norm: one of `NORMS`; "" for none.
        channels: of the map to normalise.
        gn_groups: groups of GroupNorm; their greatest common divisor with `channels` is taken.

    Returns:
        The layer; None for "". In a single process the synchronised norms are plain batch norms of the same keys, and
        so is torch's own where there is no GPU, as it cannot synchronise there.

    Raises:
        ConfigError: an unknown norm.
    """
    if norm not in NORMS:
        raise ConfigError(f"MODEL.RESNETS.NORM {norm!r}: expected one of {', '.join(map(repr, NORMS))}")
    single = comm.get_world_size() == 1
    if norm == "BN" or (single and norm.startswith("naiveSyncBN")):
        return TinyBatchNorm2d(channels)
    if norm in ("SyncBN", "nnSyncBN") and (single or not torch.cuda.is_available()):
        return TinyBatchNorm2d(channels)
    if norm == "GN":
        return nn.GroupNorm(math.gcd(gn_groups, channels), channels)
    return detectron2_get_norm(norm, channels)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces every nn.SyncBatchNorm, which cannot synchronise on a CPU, by a BatchNorm2d of the same keys.

    The new layers hold the very tensors of the old ones, so optimizers and shared weights stay valid.

    Returns:
        `module`, changed in place; a new layer where `module` is itself an nn.SyncBatchNorm.
    """
    if isinstance(module, nn.SyncBatchNorm):
        plain = TinyBatchNorm2d(module.num_features, module.eps, module.momentum, device="meta")
        plain.affine, plain.track_running_stats = module.affine, module.track_running_stats
        plain._parameters = module._parameters
        plain._buffers = module._buffers
        return plain.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, revert_sync_batchnorm(child))
    return module
