"""Layers that Detectron2 and torch lack, and how they are run: norms of small batches, convolutions with their norm in one
pass, activation checkpointing, modes that are kept.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.layers import get_norm as detectron2_get_norm
from detectron2.utils import comm
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

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


class FloatSyncBatchNorm(NaiveSyncBatchNorm):
    """Detectron2's NaiveSyncBatchNorm that takes the statistics of bfloat16 maps in float32, as that does of float16's.

    It has a variance as mean square less squared mean: rounded to bfloat16, that may be negative, and the network NaN.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.dtype == torch.bfloat16:
            return super().forward(input.float()).to(input.dtype)
        return super().forward(input)


def get_norm(norm: str, channels: int, gn_groups: int = 32, key: str = "MODEL.RESNETS.NORM") -> nn.Module | None:
    """Detectron2's `get_norm`, with batch norms that train on one process, on a CPU and on one image.

    Args:
        norm: one of `NORMS`; "" for none.
        channels: of the map to normalise.
        gn_groups: groups of GroupNorm; their greatest common divisor with `channels` is taken.
        key: that named the norm, for the message of an error.

    Returns:
        The layer; None for "". In a single process the synchronised norms are plain batch norms of the same keys, and
        so is torch's own where there is no GPU, as it cannot synchronise there.

    Raises:
        ConfigError: an unknown norm.
    """
    if norm not in NORMS:
        raise ConfigError(f"{key} {norm!r}: expected one of {', '.join(map(repr, NORMS))}")
    single = comm.get_world_size() == 1
    if norm == "BN" or (single and norm.startswith("naiveSyncBN")):
        return TinyBatchNorm2d(channels)
    if norm in ("SyncBN", "nnSyncBN") and (single or not torch.cuda.is_available()):
        return TinyBatchNorm2d(channels)
    if norm == "GN":
        return nn.GroupNorm(math.gcd(gn_groups, channels), channels)
    if norm.startswith("naiveSyncBN"):
        return FloatSyncBatchNorm(channels, stats_mode="N" if norm == "naiveSyncBN_N" else "")
    return detectron2_get_norm(norm, channels)


def revert_sync_batchnorm(module: nn.Module, *more: type[_BatchNorm]) -> nn.Module:
    """Replaces every nn.SyncBatchNorm, which cannot synchronise on a CPU, by a BatchNorm2d of the same keys.

    The new layers hold the very tensors of the old ones, so optimizers and shared weights stay valid.

    Args:
        more: other batch norms to replace, e.g. Detectron2's NaiveSyncBatchNorm, which synchronises anywhere.

    Returns:
        `module`, changed in place; a new layer where `module` is itself such a norm.
    """
    kinds: tuple[type[_BatchNorm], ...] = (nn.SyncBatchNorm, *more)
    if isinstance(module, kinds):
        plain = TinyBatchNorm2d(module.num_features, module.eps, module.momentum, device="meta")
        plain.affine, plain.track_running_stats = module.affine, module.track_running_stats
        plain._parameters = module._parameters
        plain._buffers = module._buffers
        return plain.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, revert_sync_batchnorm(child, *more))
    return module


def as_scale_and_shift(norm: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a batch norm does with the statistics it has; None of any other norm, and of one that takes new statistics.

    Returns:
        C x 1 x 1 x 1 to scale a weight by, 1 x C x 1 x 1 to shift a map by; differentiable to the norm's parameters.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        stands_still = isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None
        if not stands_still or norm.weight is None:
            return None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return scale.view(-1, 1, 1, 1), shift.view(1, -1, 1, 1)


def is_smaller_than_map(weight: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a convolution's weight has fewer numbers than its output, at stride 1, for an input N x C x H x W."""
    # A program that is compiled or exported holds for maps of many sizes; both ways compute the same.
    return not torch.compiler.is_compiling() and weight[0].numel() <= len(x) * x.shape[2] * x.shape[3]


class ConvNorm(Conv2d):
    """Detectron2's Conv2d with a norm, of the same keys and results, and gradients to the norm's parameters, too.

    A frozen batch norm, and any batch norm in evaluation, scales the weight in place of the feature map: the norm then
    reads and keeps no map of its own. Without bias, activation and transposed weights.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N x C x H x W -> N x C' x H' x W'."""
        geometry = (self.stride, self.padding, self._dilation(x), self.groups)
        folded = as_scale_and_shift(self.norm) if is_smaller_than_map(self.weight, x) else None
        if folded is None:
            maps = conv2d(x, self.weight, None, *geometry)
            return maps if self.norm is None else self.norm(maps)
        scale, shift = folded
        # Not as the convolution's bias: oneDNN takes long for the gradient to one.
        return conv2d(x, self.weight * scale, None, *geometry).add_(shift)

    def _dilation(self, x: torch.Tensor) -> tuple[int, ...]:
        """That of a 1x1 convolution decides nothing but who computes it.

        On a CPU, PyTorch leaves undilated ones of less than 16 images to another library than oneDNN if it has one thread,
        which takes longer where memory is channels last.
        """
        return (2, 2) if self.kernel_size == (1, 1) and x.device.type == "cpu" else self.dilation


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms below `module` normalise as ever, but leave their running statistics and counters as they are."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    before = [(norm.track_running_stats, norm.momentum) for norm in norms]
    for norm in norms:
        # torch's own layers read the first, Detectron2's NaiveSyncBatchNorm the second.
        norm.track_running_stats, norm.momentum = False, 0.0
    try:
        yield
    finally:
        for norm, (tracks, momentum) in zip(norms, before, strict=True):
            norm.track_running_stats, norm.momentum = tracks, momentum


def recomputed(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Activation checkpointing: `forward(x)`, of whose activations only x is kept; batch norms of `module` count the batch
    once.

    `forward` must draw no random numbers. torch.compile decides by itself what to compute again: there, and without
    gradients, this is just `forward(x)`.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return forward(x)
    contexts = lambda: (nullcontext(), frozen_statistics(module))  # noqa: E731
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Within, modes may change; afterwards each module has its own again, which `network.train()` would make all alike."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
