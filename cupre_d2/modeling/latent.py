"""The latent of an encoder as a vector an image, and its training on pseudo-labels (paper 003)."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn
from torch.nn.functional import cross_entropy

from cupre_d2.errors import ConfigError
from cupre_d2.modeling.layers import modes_kept


def encoder_of(network: nn.Module) -> Any:
    """The `backbone.bottom_up` of a detector, of MoCo or of SemanticWatershed; raises ConfigError where there is none."""
    try:
        return network.get_submodule("backbone.bottom_up")
    except AttributeError:
        raise ConfigError(
            f"{type(network).__name__} has no backbone.bottom_up; expected MoCo, SemanticWatershed or a detector with a neck"
        ) from None


class PooledLatent(nn.Module):
    """The encoder's coarsest map, its last block's, averaged over all pixels.

    Args:
        encoder: maps N x 3 x H x W to {feature: map}; shared, not copied.
        pixel_mean, pixel_std: three values each, on the scale 0..255.

    Attributes:
        channels: C, of the latent.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, encoder: Any, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        shapes = encoder.output_shape()
        # Of two maps of one stride, the later one knows more.
        self.feature = max(reversed(shapes), key=lambda name: shapes[name].stride)
        self.channels: int = shapes[self.feature].channels
        self.encoder = encoder
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """N x C of N x 3 x H x W images on the scale 0..255, on any device."""
        normalized = (images.to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std
        return self.encoder(normalized)[self.feature].mean((2, 3))

    @torch.no_grad()
    def of_samples(self, images: torch.Tensor, batch_size: int) -> torch.Tensor:
        """N x C float32 on the CPU, batch norms with their running statistics; modes and statistics stay as they were."""
        with modes_kept(self):
            self.eval()
            return torch.cat([self(batch).float().cpu() for batch in images.split(batch_size)])


class ClusterClassifier(nn.Module):
    """An encoder with a linear layer that tells clusters apart.

    Args:
        latent: of the encoder to train.
        clusters: K.
    """

    def __init__(self, latent: PooledLatent, clusters: int) -> None:
        super().__init__()
        self.latent = latent
        self.linear = nn.Linear(latent.channels, clusters)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """{"loss_cluster": mean cross-entropy}; logs cluster_accuracy, 0..1, to the EventStorage, if any.

        Args:
            batched_inputs: dicts with "image", 3 x H x W on the scale 0..255, all of one size, and "cluster", 0..K-1.
        """
        logits = self.linear(self.latent(torch.stack([inputs["image"] for inputs in batched_inputs])))
        clusters = torch.tensor([inputs["cluster"] for inputs in batched_inputs], device=logits.device)
        if has_event_storage():
            accuracy = (logits.detach().argmax(1) == clusters).float().mean()
            get_event_storage().put_scalar("cluster_accuracy", accuracy.item())
        return {"loss_cluster": cross_entropy(logits, clusters)}
