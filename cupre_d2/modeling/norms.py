"""Normalisation layers: Detectron2's, where batches may be small and processes few."""

import math

import torch
from detectron2.layers import get_norm as detectron2_get_norm
from detectron2.utils import comm
from torch import nn


class TinyBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that accepts one value a channel in training, where it then uses its running statistics.

    Split attention normalises N x C x 1 x 1 maps: with one image a process there is nothing to take a variance of, and
    torch raises. Same parameters and buffers as BatchNorm2d.
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
        norm: "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN" or "" for none.
        channels: of the map to normalise.
        gn_groups: groups of GroupNorm; their greatest common divisor with `channels` is taken.

    Returns:
        The layer; None for "". In a single process the synchronised norms are plain batch norms, of the same keys.
    """
    single = comm.get_world_size() == 1
    if norm == "BN" or (single and norm in ("SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")):
        return TinyBatchNorm2d(channels)
    if norm == "GN":
        return nn.GroupNorm(math.gcd(gn_groups, channels), channels)
    return detectron2_get_norm(norm, channels)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces every nn.SyncBatchNorm, which needs a GPU to train, by a BatchNorm2d of the same keys and values."""
    for name, child in module.named_children():
        if isinstance(child, nn.SyncBatchNorm):
            plain = TinyBatchNorm2d(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            plain.load_state_dict(child.state_dict())
            plain.train(child.training)
            setattr(module, name, plain.to(next(iter(child.state_dict().values())).device))
        else:
            revert_sync_batchnorm(child)
    return module
