import re

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from cupre_d2 import add_cupre_config
from cupre_d2.errors import ConfigError
from cupre_d2.modeling.backbone.resnest import Bottleneck
from cupre_d2.solver.build import backbone_decay_parameters, build_optimizer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.GroupNorm(2, 4), "frozen": nn.Conv2d(4, 4, 1)})
        self.backbone["frozen"].requires_grad_(False)
        self.head = nn.Linear(4, 2)


@pytest.fixture()
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.25
    return cfg


def decays(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_sgd_decays_as_detectron2(cfg: CfgNode) -> None:
    model = Model()
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    found = decays(model, optimizer)
    assert found["backbone.conv.weight"] == found["head.weight"] == found["head.bias"] == 0.25
    assert found["backbone.norm.weight"] == 0.0
    assert "backbone.frozen.weight" not in found


@pytest.mark.parametrize("optimizer", ["AdamW", "LAMB"])
def test_adamw_and_lamb_decay_weights_only(cfg: CfgNode, optimizer: str) -> None:
    cfg.SOLVER.OPTIMIZER = optimizer
    model = Model()
    found = decays(model, build_optimizer(cfg, model))
    assert {name for name, decay in found.items() if decay} == {"backbone.conv.weight", "head.weight"}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB"])
def test_l2sp_takes_over_the_backbones_decay(cfg: CfgNode, optimizer: str) -> None:
    cfg.SOLVER.OPTIMIZER = optimizer
    model = Model()
    taken = backbone_decay_parameters(model)
    assert list(taken) == ["conv.weight"]
    found = decays(model, build_optimizer(cfg, model, exclude_decay=taken.values()))
    assert found["backbone.conv.weight"] == 0
    assert found["head.weight"] == 0.25


def test_under_l2sp_biases_of_the_backbone_do_not_decay_to_0(cfg: CfgNode) -> None:
    """Split attention's fc1 and fc2 and deformable offsets have them; the head's decay on, as Detectron2's do."""
    block = Bottleneck(
        8, 8, 8, stride=1, groups=1, radix=2, avd=True, avg_down=True, norm="BN", gn_groups=4, deform_groups=1
    )
    model = nn.ModuleDict({"backbone": block, "head": nn.Linear(4, 2)})
    biases = [f"backbone.{name}.bias" for name in ("conv2.fc1", "conv2.fc2", "conv2_offset")]
    plain = decays(model, build_optimizer(cfg, model))
    assert [plain[name] for name in biases] == [0.25] * 3
    held = decays(model, build_optimizer(cfg, model, exclude_decay=backbone_decay_parameters(model).values()))
    assert {name for name, decay in held.items() if decay} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB"])
def test_a_decay_of_biases_or_norms_that_is_asked_for(cfg: CfgNode, optimizer: str) -> None:
    cfg.SOLVER.OPTIMIZER = optimizer
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.125
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.5
    model = Model()
    found = decays(model, build_optimizer(cfg, model, exclude_decay=backbone_decay_parameters(model).values()))
    assert found == {
        "backbone.conv.weight": 0.0,
        "backbone.conv.bias": 0.125,
        "backbone.norm.weight": 0.5,
        "backbone.norm.bias": 0.125,
        "head.weight": 0.25,
        "head.bias": 0.125,
    }


def test_bottom_up_is_the_backbone_of_a_pyramid() -> None:
    pyramid = nn.Module()
    pyramid.bottom_up = nn.Conv2d(3, 3, 1)
    pyramid.lateral = nn.Conv2d(3, 3, 1)
    model = nn.Module()
    model.backbone = pyramid
    assert backbone_decay_parameters(model)["weight"] is pyramid.bottom_up.weight


def test_lambs_first_step_is_the_papers(cfg: CfgNode) -> None:
    """You et al. 2020, algorithm 2: w − η ‖w‖ / ‖r‖ r, and after one step r is the gradient's sign where nothing decays."""
    cfg.SOLVER.OPTIMIZER = "LAMB"
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    # Without a decay timm takes ‖w‖ / ‖r‖ for 1, as its publishers do for biases and norms.
    for decay in (0.0, 1e-12):
        cfg.SOLVER.WEIGHT_DECAY = decay
        model = Model()
        weight = model.head.weight
        before, gradient = weight.detach().clone(), torch.randn_like(weight) * 1000
        weight.grad = gradient
        build_optimizer(cfg, model).step()
        ratio = before.norm() / gradient.sign().norm() if decay else 1.0
        assert torch.allclose(weight, before - 0.1 * ratio * gradient.sign(), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB"])
def test_clips_the_norm_of_the_whole_gradient(cfg: CfgNode, optimizer: str) -> None:
    cfg.SOLVER.OPTIMIZER = optimizer
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 5.0
    model = Model()
    stepper = build_optimizer(cfg, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, 3.0)
    stepper.step()
    assert torch.cat([parameter.grad.flatten() for parameter in trained]).norm().item() == pytest.approx(5.0, rel=1e-4)
    copy = build_optimizer(cfg, model)
    copy.load_state_dict(stepper.state_dict())


def test_leaves_a_small_gradient_alone(cfg: CfgNode) -> None:
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 5.0
    model = Model()
    stepper = build_optimizer(cfg, model)
    model.head.weight.grad = torch.full_like(model.head.weight, 0.01)
    stepper.step()
    assert (model.head.weight.grad == 0.01).all()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("AdamWW", "did you mean AdamW"),
        ("sgd", "did you mean SGD"),
        ("ADAM", "did you mean AdamW"),
        ("lamb", "did you mean LAMB"),
        ("?", "expected one of SGD, AdamW, LAMB"),
    ],
)
def test_unknown_optimizer(cfg: CfgNode, given: str, meant: str) -> None:
    cfg.SOLVER.OPTIMIZER = given
    with pytest.raises(ConfigError, match=rf"SOLVER.OPTIMIZER '{re.escape(given)}': {meant}"):
        build_optimizer(cfg, Model())


def test_unknown_clipping(cfg: CfgNode) -> None:
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full"
    build_optimizer(cfg, Model())
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    with pytest.raises(ConfigError, match="CLIP_TYPE 'full': did you mean full_model"):
        build_optimizer(cfg, Model())
