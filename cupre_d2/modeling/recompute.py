"""Activation checkpointing: activations are computed again in the backward pass rather than kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


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
    """`forward(x)`, of whose activations only x is kept; batch norms of `module` count the batch once.

    `forward` must draw no random numbers. torch.compile decides by itself what to compute again: there, and without
    gradients, this is just `forward(x)`.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return forward(x)
    contexts = lambda: (nullcontext(), frozen_statistics(module))  # noqa: E731
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
