"""ReLU that needs no memory of its own, neither forward nor backward."""

from typing import Any

import torch


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        out = torch.relu_(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (out,) = ctx.saved_tensors
        # Under create_graph what comes in is kept; of other strides it may be expanded, and hold one value for many.
        if torch.is_grad_enabled() or grad.stride() != out.stride():
            return torch.where(out > 0, grad, 0)
        return torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)


def relu_(x: torch.Tensor) -> torch.Tensor:
    """As torch.relu_, but the gradient is written over the one that comes in.

    New memory is what a ReLU's backward pass takes long for. Only for where nothing else holds that gradient: where the
    result goes to a convolution, to another operation that makes its gradient anew, or to several, whose gradients are
    summed; not to an addition alone, which hands the same gradient to both of its inputs, and not out of the network.
    """
    if torch.compiler.is_compiling() or not (x.requires_grad and torch.is_grad_enabled()):
        return torch.relu_(x)
    return _ReLU.apply(x)
