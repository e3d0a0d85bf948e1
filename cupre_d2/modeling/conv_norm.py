"""A convolution, the norm behind it and a ReLU, in one pass where the norm's statistics stand still."""

from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.modules.batchnorm import _BatchNorm

from cupre_d2.modeling.conv_relu import conv_relu, geometry
from cupre_d2.modeling.relu import relu_


def as_scale_and_shift(norm: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What a batch norm does with the statistics it has; None of any other norm, and of one that takes new statistics.

    Returns:
        C, to scale a weight by, and C, to shift a map by; differentiable to the norm's parameters.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        stands_still = isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None
        if not stands_still or norm.weight is None:
            return None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def folded(weight: torch.Tensor, norm: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A weight and a shift that do what `weight` and `norm` would on x, N x C x H x W; None where that is no gain.

    The weight takes a pass over itself, the norm one over the map: at stride 1, the smaller decides.
    """
    if weight[0].numel() > len(x) * x.shape[2] * x.shape[3]:
        return None
    found = as_scale_and_shift(norm)
    return found and (weight * found[0].view(-1, 1, 1, 1), found[1])


def conv_norm(x: torch.Tensor, conv: nn.Conv2d, norm: Any) -> torch.Tensor:
    """norm(conv(x)), of a convolution without bias; None for no norm."""
    how = geometry(conv, x)
    if parts := folded(conv.weight, norm, x):
        # Not as the convolution's bias: oneDNN takes long for the gradient to one.
        return conv2d(x, parts[0], None, *how).add_(parts[1].view(1, -1, 1, 1))
    maps = conv2d(x, conv.weight, None, *how)
    return maps if norm is None else norm(maps)


def conv_norm_relu(x: torch.Tensor, conv: nn.Conv2d, norm: Any, addend: torch.Tensor | None = None) -> torch.Tensor:
    """relu(norm(conv(x)) + addend), of a convolution without bias; None for no norm.

    Without `addend`, nothing else may hold the gradient to the result; see `relu_`.
    """
    if parts := folded(conv.weight, norm, x):
        return conv_relu(x, *parts, addend, geometry(conv, x))
    maps = conv_norm(x, conv, norm)
    return relu_(maps) if addend is None else torch.relu_(maps.add_(addend))


class ConvNorm(Conv2d):
    """Detectron2's Conv2d with a norm, of the same keys and results, and gradients to the norm's parameters, too.

    A frozen batch norm, and any batch norm in evaluation, scales the weight in place of the feature map: the norm then
    reads and keeps no map of its own. Without bias and activation.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N x C x H x W -> N x C' x H' x W'."""
        return conv_norm(x, self, self.norm)


class ConvNormReLU(Conv2d):
    """`ConvNorm` with a ReLU, and a map to add before that; see `conv_norm_relu`."""

    def forward(self, x: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        """N x C x H x W and, if any, N x C' x H' x W' -> N x C' x H' x W'."""
        return conv_norm_relu(x, self, self.norm, addend)
