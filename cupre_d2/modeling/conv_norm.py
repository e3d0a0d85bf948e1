"""A convolution and the norm behind it in one pass, where the norm's statistics stand still."""

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch.nn.functional import conv2d
from torch.nn.modules.batchnorm import _BatchNorm


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
    return weight[0].numel() <= len(x) * x.shape[2] * x.shape[3]


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
