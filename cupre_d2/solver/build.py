"""Optimizers from a config: Detectron2's keys, AdamW, LAMB, and parameters whose decay L2-SP takes over."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping, reduce_param_groups
from torch import nn

from cupre_d2.errors import ConfigError

OPTIMIZERS = ("SGD", "AdamW", "LAMB")
CLIP_TYPES = ("full_model", "value", "norm")


def backbone_decay_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that L2-SP takes: those of the bottom-up backbone that train, norms and biases left out.

    Those have no weight decay that L2-SP could stand in for; that they have none, `build_optimizer` sees to.
    """
    backbone = model.get_submodule("backbone")
    backbone = getattr(backbone, "bottom_up", backbone)
    return {name: p for name, p in backbone.named_parameters() if p.requires_grad and p.dim() > 1}


def build_optimizer(cfg: CfgNode, model: nn.Module, exclude_decay: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over the parameters that train, with Detectron2's SOLVER keys.

    SOLVER.WEIGHT_DECAY is, with SGD, for norms no decay and for biases one, as Detectron2 has it, whose schedules count on
    it. AdamW and LAMB (You et al. 2020, timm's) decay parameters of more than one dimension only, as is the custom of both.
    The same holds for the layers under L2-SP, whatever the optimizer: of a layer whose weight is held near its anchor, the
    bias (of split attention's fc1 and fc2, of deformable offsets) must not go on decaying to 0. WEIGHT_DECAY_NORM and
    WEIGHT_DECAY_BIAS, where they are set, win over all of this.

    The betas of AdamW and LAMB are 0.9 and 0.999. Of LAMB timm would clip the norm of the gradient at 1; here
    CLIP_GRADIENTS alone does.

    CLIP_GRADIENTS.CLIP_TYPE "full_model" clips the norm of the whole gradient; "value" and "norm" are Detectron2's, which
    clip each parameter's.

    Args:
        exclude_decay: the parameters under L2-SP, which stands in for their weight decay.

    Raises:
        ConfigError: an unknown optimizer or type of clipping.
    """
    solver = cfg.SOLVER
    check_known("SOLVER.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    if solver.CLIP_GRADIENTS.ENABLED:
        check_known("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", solver.CLIP_GRADIENTS.CLIP_TYPE, CLIP_TYPES)
    excluded = {id(parameter) for parameter in exclude_decay}
    groups = _parameter_groups(solver, model, excluded)
    options: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY, "foreach": True}
    if solver.OPTIMIZER == "LAMB":
        # Importing timm takes seconds.
        from timm.optim.lamb import Lamb

        kind: type[torch.optim.Optimizer] = Lamb
        options["max_grad_norm"] = None
    else:
        kind = getattr(torch.optim, solver.OPTIMIZER)
    if solver.OPTIMIZER == "SGD":
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model":
        return _clipping_whole_gradient(kind, solver.CLIP_GRADIENTS)(groups, **options)
    return maybe_add_gradient_clipping(cfg, kind(groups, **options))


def check_known(key: str, value: str, known: Collection[str]) -> None:
    """Raises ConfigError with the closest name for a config value that is none of the known ones."""
    if value in known:
        return
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.3)
    hint = f"did you mean {by_lower[close[0]]}?" if close else f"expected one of {', '.join(known)}"
    raise ConfigError(f"{key} {value!r}: {hint}")


def _parameter_groups(solver: CfgNode, model: nn.Module, excluded: set[int]) -> list[dict[str, Any]]:
    weights_only = solver.OPTIMIZER != "SGD"
    # What WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS say where WEIGHT_DECAY says nothing.
    bare = {id(p): group["weight_decay"] for group in _decaying(solver, model, 0.0) for p in group["params"]}
    held = {
        id(parameter)
        for layer in model.modules()
        if any(id(weight) in excluded for weight in layer.parameters(recurse=False))
        for parameter in layer.parameters(recurse=False)
    }
    single = []
    for group in _decaying(solver, model, solver.WEIGHT_DECAY):
        for parameter in group["params"]:
            decay = group["weight_decay"]
            if id(parameter) in excluded:
                decay = 0.0
            elif id(parameter) in held or (weights_only and parameter.dim() <= 1):
                decay = bare[id(parameter)]
            single.append({**group, "params": [parameter], "weight_decay": decay})
    return reduce_param_groups(single)


def _decaying(solver: CfgNode, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Detectron2's groups of the parameters that train, by learning rate and decay."""
    return get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=weight_decay,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )


def _clipping_whole_gradient(kind: type[torch.optim.Optimizer], clip: CfgNode) -> type[torch.optim.Optimizer]:
    limit, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    class ClippingOptimizer(kind):  # type: ignore[valid-type, misc]
        def step(self, closure: Any = None) -> Any:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, limit, norm_type)
            return super().step(closure)

    return ClippingOptimizer
