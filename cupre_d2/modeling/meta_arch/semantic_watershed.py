"""Semantic segmentation into background, cell and border by a U-Net, and instances by watershed (paper 003)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.modeling.layers import get_norm
from cupre_d2.modeling.watershed import Thresholds, check_border, resize, segment, to_instances, to_labels, to_target

CLASSES = 3
IMAGE_CHANNELS = 3
# Pixels that images of a batch are padded with.
IGNORED = -100


class UNetDecoder(nn.Module):
    """A U-Net's (Ronneberger, Fischer and Brox, MICCAI 2015): from the latent, the backbone's coarsest map, to image size.

    Each step doubles the size, joins the backbone's map of that stride and convolves twice, 3 x 3 with norm and ReLU.
    Where the backbone has no map, as at strides 1 and 2 of Detectron2's networks, the image itself is joined, averaged to
    that stride, so that borders of a pixel or two have something to follow. The paper leaves the decoder open.

    Args:
        shapes: of the backbone's maps; strides are powers of 2.
        channels: of each step, from coarse to fine; as many as the latent's stride has factors 2, so 5 for stride 32.
        norm, gn_groups: see `get_norm`.

    Raises:
        ConfigError: other numbers of channels, fewer than two maps, or maps whose strides are no powers of 2.
    """

    def __init__(
        self, shapes: Mapping[str, ShapeSpec], channels: Sequence[int], norm: str = "BN", gn_groups: int = 32
    ) -> None:
        super().__init__()
        # Of two maps of one stride, as Detectron2's stem and res2, the later one knows more.
        by_stride = {_stride(name, shape): name for name, shape in shapes.items()}
        self.stride = max(by_stride)
        self.latent = by_stride[self.stride]
        steps = self.stride.bit_length() - 1
        if len(by_stride) < 2:
            raise ConfigError(
                f"MODEL.RESNETS.OUT_FEATURES {list(shapes)}: expected the maps that the decoder joins, "
                "as res2, res3, res4, res5"
            )
        if len(channels) != steps or min(channels) < 1:
            raise ConfigError(
                f"MODEL.UNET.CHANNELS {list(channels)}: expected {steps} positive numbers, one a step "
                f"from stride {self.stride} to 1"
            )
        self.skips = [by_stride.get(self.stride >> step) for step in range(1, steps + 1)]
        self.out_channels = channels[-1]
        self.steps = nn.ModuleList()
        width = shapes[self.latent].channels
        for skip, out_channels in zip(self.skips, channels, strict=True):
            joined = shapes[skip].channels if skip else IMAGE_CHANNELS
            self.steps.append(
                nn.Sequential(
                    _convolution((width or 0) + (joined or 0), out_channels, norm, gn_groups),
                    _convolution(out_channels, out_channels, norm, gn_groups),
                )
            )
            width = out_channels

    def forward(self, images: torch.Tensor, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """N x 3 x H x W, H and W multiples of `stride`, and the backbone's maps of them -> N x channels[-1] x H x W."""
        maps = features[self.latent]
        for number, (skip, step) in enumerate(zip(self.skips, self.steps, strict=True), start=1):
            stride = self.stride >> number
            joined = features[skip] if skip else avg_pool2d(images, stride)
            maps = step(torch.cat([interpolate(maps, scale_factor=2.0, mode="nearest"), joined], dim=1))
        return maps


def _stride(name: str, shape: ShapeSpec) -> int:
    stride = shape.stride or 0
    if stride < 1 or stride & (stride - 1):
        raise ConfigError(f"MODEL.BACKBONE: map {name} of stride {stride}; expected a power of 2")
    return stride


def _convolution(in_channels: int, out_channels: int, norm: str, gn_groups: int) -> Conv2d:
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels, gn_groups, "MODEL.UNET.NORM"),
        activation=nn.functional.relu,
    )
    weight_init.c2_msra_fill(layer)
    return layer


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
            **{key.lower(): value for key, value in cfg.MODEL.UNET.items()},
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
