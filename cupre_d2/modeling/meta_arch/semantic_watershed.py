"""Semantic segmentation into background, cell and border by a U-Net, and instances by watershed (paper 003)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from torch import nn
from torch.nn.functional import cross_entropy

from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.modeling.unet import UNetDecoder
from cupre_d2.modeling.watershed import Thresholds, check_border, resize, segment, to_instances, to_labels, to_target

CLASSES = 3
# Pixels that images of a batch are padded with.
IGNORED = -100


@META_ARCH_REGISTRY.register()
class SemanticWatershed(nn.Module):
    """A U-Net whose encoder is a Detectron2 backbone; its instances come of a watershed of its probabilities.

    The encoder is held as `backbone.bottom_up`, as in a detector and in MoCo, so that its weights go from one to the
    other; `decoder` and `predictor` are the rest. Images of any size are padded with the mean pixel, right and below, to
    what the encoder's stride divides.

    Args:
        encoder: maps N x 3 x H x W to {feature: map}; the coarsest map is the latent.
        channels, norm, gn_groups: of the decoder; see UNetDecoder.
        border, border_width: of the target; see `to_target`.
        thresholds: of the watershed.
        pixel_mean, pixel_std: three values each, on the scale 0..255.

    Raises:
        ConfigError: a value outside its range.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        encoder: Backbone,
        channels: Sequence[int] = (256, 128, 64, 32, 16),
        norm: str = "BN",
        gn_groups: int = 32,
        border: str = "inner",
        border_width: int = 2,
        thresholds: Thresholds | None = None,
        pixel_mean: Sequence[float] = (0.0, 0.0, 0.0),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        check_border(border, border_width)
        self.border = border
        self.border_width = border_width
        self.thresholds = thresholds or Thresholds()
        self.backbone = nn.ModuleDict({"bottom_up": encoder})
        self.decoder = UNetDecoder(encoder.output_shape(), channels, norm, gn_groups)
        self.predictor = nn.Conv2d(self.decoder.out_channels, CLASSES, kernel_size=1)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads MODEL.BACKBONE (without its neck), MODEL.UNET and MODEL.SEMANTIC_WATERSHED."""
        backbone = build_backbone(cfg)
        keys = cfg.MODEL.SEMANTIC_WATERSHED
        return {
            "encoder": getattr(backbone, "bottom_up", backbone),
            "channels": cfg.MODEL.UNET.CHANNELS,
            "norm": cfg.MODEL.UNET.NORM,
            "gn_groups": cfg.MODEL.UNET.GN_GROUPS,
            "border": keys.BORDER,
            "border_width": keys.BORDER_WIDTH,
            "thresholds": Thresholds(
                keys.SEED_THRESHOLD, keys.BACKGROUND_THRESHOLD, keys.RELIEF_THRESHOLD, keys.SCORE_THRESHOLD
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """The loss in training, else instances.

        Args:
            batched_inputs: dicts with "image", 3 x H x W on the scale 0..255, any sizes; in training "instances" with
                gt_masks (bit masks or polygons); else, where wanted, "height" and "width" of the result.

        Returns:
            In training {"loss_semantic": mean cross-entropy over the pixels of all images}. Else, for each input,
            {"instances": Instances} on the CPU, as `to_instances` makes them, of the size asked for. The watershed runs at
            the size of the input, where borders have the width they were learned with; its cells are resized.

        Raises:
            DatasetError: in training, an image without "instances".
            ConfigError: in training, instances without gt_masks.
        """
        if self.training:
            logits = self._logits(self._padded(batched_inputs))
            return {"loss_semantic": cross_entropy(logits, self._targets(batched_inputs), ignore_index=IGNORED)}
        return [
            {"instances": self._instances(probabilities, inputs)}
            for probabilities, inputs in zip(self.probabilities(batched_inputs), batched_inputs, strict=True)
        ]

    def probabilities(self, batched_inputs: list[dict[str, Any]]) -> Iterator[np.ndarray]:
        """What the watershed is made of: of each image 3 x H x W float32 of background, cell and border, at its own size.

        Args:
            batched_inputs: as of `forward`.
        """
        images = self._padded(batched_inputs)
        for logits, (height, width) in zip(self._logits(images), images.image_sizes, strict=True):
            yield logits[:, :height, :width].float().softmax(0).cpu().numpy()

    def _logits(self, images: ImageList) -> torch.Tensor:
        return self.predictor(self.decoder(images.tensor, self.backbone["bottom_up"](images.tensor)))

    def _padded(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        images = [inputs["image"].to(self.pixel_mean.device) for inputs in batched_inputs]
        return ImageList.from_tensors([(image - self.pixel_mean) / self.pixel_std for image in images], self.decoder.stride)

    def _targets(self, batched_inputs: list[dict[str, Any]]) -> torch.Tensor:
        targets = []
        for inputs in batched_inputs:
            height, width = inputs["image"].shape[-2:]
            name = inputs.get("file_name", "an image")
            if "instances" not in inputs:
                raise DatasetError(f"{name}: no annotations; expected instances to learn from")
            if not inputs["instances"].has("gt_masks"):
                raise ConfigError(f"MODEL.MASK_ON: {name} comes without masks; expected True")
            labels = to_labels(inputs["instances"].gt_masks, height, width).to(self.pixel_mean.device)
            targets.append(to_target(labels, self.border, self.border_width))
        return ImageList.from_tensors(targets, self.decoder.stride, IGNORED).tensor

    def _instances(self, probabilities: np.ndarray, inputs: dict[str, Any]) -> Instances:
        cells = segment(probabilities, self.border, self.thresholds)
        height, width = probabilities.shape[1:]
        return to_instances(*resize(*cells, inputs.get("height", height), inputs.get("width", width)))
