"""A convolution, a shift, an addition and a ReLU: on a CPU in one pass over memory, as oneDNN does them."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import conv2d

from cupre_d2.modeling.relu import relu_, relu_gradient

Sizes = tuple[int, ...]


class Geometry(NamedTuple):
    """What conv2d takes behind the bias."""

    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int


def geometry(conv: nn.Conv2d, x: torch.Tensor) -> Geometry:
    """Of a convolution of x; a 1x1 convolution on a CPU is dilated, which changes nothing but who computes it.

    PyTorch leaves undilated ones of less than 16 images to another library than oneDNN when it has one thread, for twice
    the time where memory is channels last.
    """
    assert isinstance(conv.padding, tuple), "a size, not a name"
    dilation = (2, 2) if conv.kernel_size == (1, 1) and x.device.type == "cpu" else conv.dilation
    return Geometry(conv.stride, conv.padding, dilation, conv.groups)


def conv_relu(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, addend: torch.Tensor | None, how: Geometry
) -> torch.Tensor:
    """relu(conv2d(x, weight) + shift + addend), with gradients to all four.

    Without `addend` the gradient that comes in is written over, as by `relu_`, and the same must hold.

    Args:
        x: N x C x H x W.
        shift: C'.
        addend: of the result's shape, N x C' x H' x W', and layout.
    """
    if _has_kernel(x, weight):
        return _ConvReLU.apply(x, weight, shift, addend, how)
    maps = conv2d(x, weight, None, *how).add_(shift.view(1, -1, 1, 1))
    return relu_(maps) if addend is None else torch.relu_(maps.add_(addend))


def _has_kernel(x: torch.Tensor, weight: torch.Tensor) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    floats = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and floats and not traced and torch.backends.mkldnn.is_available() and x.numel() > 0


class _ConvReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, addend: torch.Tensor | None, how: Geometry
    ) -> torch.Tensor:
        # What torch.compile makes of such a sequence on a CPU.
        kernel = torch.ops.mkldnn._convolution_pointwise
        window = (how.padding, how.stride, how.dilation, how.groups)
        if addend is None:
            out = kernel(x, weight, shift, *window, "relu", [], "")
        else:
            out = kernel.binary(x, addend, weight, shift, *window, "add", 1.0, "relu", [], "")
        ctx.save_for_backward(x, weight, out)
        ctx.how, ctx.adds = how, addend is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        grad = relu_gradient(grad, out, in_place=not ctx.adds)
        to_x, to_weight, to_shift, *_ = ctx.needs_input_grad
        # Not its gradient to a bias, which oneDNN takes long for.
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (to_x, to_weight, False)
        )
        grad_shift = grad.sum((0, 2, 3)) if to_shift else None
        return grad_x, grad_weight, grad_shift, grad if ctx.adds else None, None
