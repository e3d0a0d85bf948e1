import copy
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from cupre_d2.config import add_cupre_config, default_config
from cupre_d2.errors import ConfigError
from cupre_d2.modeling.backbone.resnest import STAGES, Bottleneck, ResNeSt
from cupre_d2.modeling.layers import NORMS

NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

# Of networks without classifier: derived from the published totals, less 2048 x 1000 + 1000 of the classifier.
PUBLISHED_PARAMETERS = {50: 25.43e6, 101: 46.23e6, 200: 68.15e6, 269: 108.88e6}


def build_meta(depth: int, **options: Any) -> ResNeSt:
    with torch.device("meta"):
        return ResNeSt(depth, **options)


def slim(**options: Any) -> ResNeSt:
    return ResNeSt(14, width_multiplier=0.125, **{"gn_groups": 4, **options})


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.fixture()
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnest_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 14
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 0.125
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


@pytest.mark.parametrize(
    ("depth", "blocks", "stem"),
    [
        (14, (1, 1, 1, 1), 32),
        (26, (2, 2, 2, 2), 32),
        (50, (3, 4, 6, 3), 32),
        (101, (3, 4, 23, 3), 64),
        (200, (3, 24, 36, 3), 64),
        (269, (3, 30, 48, 8), 64),
    ],
)
def test_depths(depth: int, blocks: tuple[int, ...], stem: int) -> None:
    model = build_meta(depth)
    assert tuple(len(getattr(model, name)) for name in model.stage_names) == blocks
    weights = [getattr(model.stem, f"conv1_{number}").weight.shape for number in (1, 2, 3)]
    assert weights == [(stem, 3, 3, 3), (stem, stem, 3, 3), (2 * stem, stem, 3, 3)]
    assert {name: shape.channels for name, shape in model.output_shape().items()} == {
        "res2": 256,
        "res3": 512,
        "res4": 1024,
        "res5": 2048,
    }
    if depth in PUBLISHED_PARAMETERS:
        total = sum(parameter.numel() for parameter in model.parameters())
        assert total == pytest.approx(PUBLISHED_PARAMETERS[depth], rel=1e-3)


def test_keys_and_shapes_are_the_published_ones() -> None:
    """Derived by hand from detectron2-ResNeSt's names for a network of one block a stage."""
    expected: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, *shape: int) -> None:
        expected[f"{name}.weight"] = shape
        norm(f"{name}.norm", shape[0])

    def norm(name: str, channels: int) -> None:
        expected.update({f"{name}.{key}": (channels,) for key in NORM_KEYS[:-1]})
        expected[f"{name}.num_batches_tracked"] = ()

    convolution("stem.conv1_1", 32, 3, 3, 3)
    convolution("stem.conv1_2", 32, 32, 3, 3)
    convolution("stem.conv1_3", 64, 32, 3, 3)
    for stage, into, width, hidden in [(2, 64, 64, 32), (3, 256, 128, 64), (4, 512, 256, 128), (5, 1024, 512, 256)]:
        block = f"res{stage}.0"
        convolution(f"{block}.conv1", width, into, 1, 1)
        expected[f"{block}.conv2.conv.weight"] = (2 * width, width // 2, 3, 3)
        norm(f"{block}.conv2.bn0", 2 * width)
        expected[f"{block}.conv2.fc1.weight"] = (hidden, width, 1, 1)
        expected[f"{block}.conv2.fc1.bias"] = (hidden,)
        norm(f"{block}.conv2.bn1", hidden)
        expected[f"{block}.conv2.fc2.weight"] = (2 * width, hidden, 1, 1)
        expected[f"{block}.conv2.fc2.bias"] = (2 * width,)
        convolution(f"{block}.conv3", 4 * width, width, 1, 1)
        convolution(f"{block}.shortcut", 4 * width, into, 1, 1)
    assert shapes(build_meta(14)) == expected


def test_keys_of_resnest_200() -> None:
    found = shapes(build_meta(200))
    assert found["res4.35.conv2.fc2.weight"] == (512, 128, 1, 1)
    assert "res4.36.conv1.weight" not in found
    assert found["res3.23.conv1.norm.running_var"] == (128,)
    assert found["res2.0.conv1.weight"] == (64, 128, 1, 1)
    assert found["res2.0.shortcut.weight"] == (256, 128, 1, 1)
    assert "res2.1.shortcut.weight" not in found


def test_cardinal_groups_widen_the_bottleneck() -> None:
    """ResNeSt-50 2s2x40d: two groups of width 40, so 80 channels in res2."""
    found = shapes(build_meta(50, groups=2, bottleneck_width=40))
    assert found["res2.0.conv2.conv.weight"] == (160, 20, 3, 3)
    assert found["res2.0.conv2.fc1.weight"] == (40, 40, 1, 1)
    assert found["res5.2.conv1.weight"] == (640, 2048, 1, 1)


def test_width_multiplier_scales_every_channel() -> None:
    model = ResNeSt(14, width_multiplier=0.5)
    assert [getattr(model.stem, f"conv1_{number}").out_channels for number in (1, 2, 3)] == [16, 16, 32]
    assert model.res2[0].conv1.out_channels == 32
    assert [shape.channels for shape in model.output_shape().values()] == [128, 256, 512, 1024]
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(2.2e6, rel=0.05)


@pytest.mark.parametrize("size", [(64, 64), (65, 47), (33, 96)])
@pytest.mark.parametrize("avd", [True, False])
@pytest.mark.parametrize("avg_down", [True, False])
@pytest.mark.parametrize("deep_stem", [True, False])
def test_strides(size: tuple[int, int], avd: bool, avg_down: bool, deep_stem: bool) -> None:
    model = slim(avd=avd, avg_down=avg_down, deep_stem=deep_stem, out_features=["stem", "res2", "res3", "res4", "res5"])
    features = model(torch.randn(1, 3, *size))
    assert list(features) == ["stem", "res2", "res3", "res4", "res5"]
    for name, shape in model.output_shape().items():
        height, width = (-(-side // shape.stride) for side in size)
        assert features[name].shape == (1, shape.channels, height, width), name


def test_stride_lies_on_the_pooling_or_on_the_3x3() -> None:
    assert slim(avd=True).res3[0].conv2.conv.stride == (1, 1)
    assert slim(avd=False).res3[0].conv2.conv.stride == (2, 2)
    assert slim(avg_down=True).res3[0].shortcut.stride == (1, 1)
    assert slim(avg_down=False).res3[0].shortcut.stride == (2, 2)


def test_shallow_stem_is_detectron2s() -> None:
    assert shapes(build_meta(50, deep_stem=False))["stem.conv1.weight"] == (64, 3, 7, 7)


@pytest.mark.parametrize(("avd", "avg_down"), [(True, True), (False, False)])
def test_block_equals_a_plain_reading_of_the_paper(avd: bool, avg_down: bool) -> None:
    torch.manual_seed(0)
    block = Bottleneck(8, 16, 4, stride=2, groups=1, radix=2, avd=avd, avg_down=avg_down, norm="BN", gn_groups=1).eval()
    x = torch.randn(2, 8, 6, 6)

    def normalised(conv: nn.Module, value: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return conv.norm(nn.functional.conv2d(value, conv.weight, stride=stride))

    main = block.conv2(torch.relu(normalised(block.conv1, x)))
    if avd:
        main = nn.functional.avg_pool2d(main, 3, 2, 1)
    side = normalised(block.shortcut, nn.functional.avg_pool2d(x, 2)) if avg_down else normalised(block.shortcut, x, 2)
    torch.testing.assert_close(block(x), torch.relu(normalised(block.conv3, main) + side))


def test_only_stages_asked_for_are_built() -> None:
    model = slim(out_features=["res3"])
    assert not hasattr(model, "res4")
    assert list(model(torch.randn(1, 3, 32, 32))) == ["res3"]


@pytest.mark.parametrize("norm", ["BN", "GN"])
@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_freezes_the_stem_and_the_stages_below(freeze_at: int, norm: str) -> None:
    model = slim(freeze_at=freeze_at, norm=norm)
    for level, name in enumerate(["stem", "res2", "res3", "res4", "res5"], start=1):
        part = getattr(model, name)
        frozen = level <= freeze_at
        assert all(parameter.requires_grad != frozen for parameter in part.parameters()), name
        assert any(isinstance(module, FrozenBatchNorm2d) for module in part.modules()) == (frozen and norm == "BN")
        assert any(isinstance(module, nn.BatchNorm2d) for module in part.modules()) == (not frozen and norm == "BN")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_norm_trains(norm: str, batch: int) -> None:
    torch.manual_seed(0)
    model = slim(norm=norm)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    features = model(torch.randn(batch, 3, 32, 32))
    sum((feature * torch.randn_like(feature)).mean() for feature in features.values()).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.grad is not None, name
    # fc1, fc2 and their norm can see equal splits, so a change is asked of the convolutions alone.
    for name in ("stem.conv1_1.weight", "res2.0.conv2.conv.weight", "res5.0.conv3.weight", "res5.0.shortcut.weight"):
        assert not torch.equal(dict(model.named_parameters())[name], before[name]), name


@pytest.mark.parametrize("norm", ["SyncBN", "nnSyncBN", "naiveSyncBN"])
def test_keys_of_synchronised_norms_are_those_of_batch_norm(norm: str) -> None:
    assert shapes(slim(norm=norm)) == shapes(slim(norm="BN"))


def test_group_norm_stands_in_every_place_of_batch_norm() -> None:
    with_bn = [name for name, module in slim(norm="BN").named_modules() if isinstance(module, nn.BatchNorm2d)]
    with_gn = [name for name, module in slim(norm="GN").named_modules() if isinstance(module, nn.GroupNorm)]
    assert with_gn == with_bn
    assert "res2.0.conv2.bn1" in with_gn


def test_initialisation() -> None:
    """Kaiming normal by fan-out ("MSRA") outside the split attention, PyTorch's default (uniform, fan-in) inside."""
    torch.manual_seed(0)
    block = ResNeSt(14).res5[0]
    assert block.conv3.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    split = block.conv2.conv.weight
    assert split.abs().max().item() <= (1 / split[0].numel()) ** 0.5


def test_registered_builders(cfg: CfgNode) -> None:
    cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.FUSE_TYPE = "avg"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    fpn = build_backbone(cfg)
    assert fpn._fuse_type == "avg"
    assert isinstance(fpn.fpn_lateral2.norm, nn.GroupNorm)
    assert not any(parameter.requires_grad for parameter in fpn.bottom_up.res2.parameters())
    assert {name: shape.stride for name, shape in fpn.output_shape().items()} == {f"p{i}": 2**i for i in range(2, 7)}
    features = fpn(torch.randn(1, 3, 64, 64))
    assert [tuple(features[f"p{i}"].shape) for i in range(2, 7)] == [(1, 32, 64 >> i, 64 >> i) for i in range(2, 7)]

    cfg.MODEL.BACKBONE.NAME = "build_resnest_backbone"
    backbone = build_backbone(cfg)
    assert isinstance(backbone, ResNeSt)
    assert shapes(backbone) == shapes(fpn.bottom_up)


@pytest.mark.parametrize(
    ("key", "value", "name", "shape"),
    [
        ("RADIX", 1, "res2.0.conv2.conv.weight", (8, 8, 3, 3)),
        ("NUM_GROUPS", 2, "res2.0.conv2.conv.weight", (32, 4, 3, 3)),
        ("DEEP_STEM", False, "stem.conv1.weight", (8, 3, 7, 7)),
        ("BOTTLENECK_WIDTH", 32, "res2.0.conv1.weight", (4, 8, 1, 1)),
        ("WIDTH_PER_GROUP", 32, "res2.0.conv1.weight", (4, 8, 1, 1)),
        ("RES2_OUT_CHANNELS", 128, "res5.0.conv3.weight", (128, 64, 1, 1)),
        ("DEPTH", 26, "res5.1.conv3.weight", (256, 64, 1, 1)),
    ],
)
def test_keys_reach_the_network(cfg: CfgNode, key: str, value: object, name: str, shape: tuple[int, ...]) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_resnest_backbone"
    cfg.MODEL.RESNETS[key] = value
    assert shapes(build_backbone(cfg))[name] == shape


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DEPTH", 152, "MODEL.RESNETS.DEPTH 152: expected one of 14, 26, 50, 101, 200, 269"),
        ("DEFORM_ON_PER_STAGE", [True], r"MODEL.RESNETS.DEFORM_ON_PER_STAGE \[True\]: expected 4 values, res2 to res5"),
        ("CHECKPOINT_STAGES", ["stem"], r"MODEL.RESNETS.CHECKPOINT_STAGES \['stem'\]: expected some of res2, res3"),
        ("RES5_DILATION", 2, "MODEL.RESNETS.RES5_DILATION 2: expected 1"),
        ("OUT_FEATURES", ["res6"], "MODEL.RESNETS.OUT_FEATURES .*res6.*: expected some of stem, res2"),
        ("OUT_FEATURES", [], "MODEL.RESNETS.OUT_FEATURES"),
        ("WIDTH_MULTIPLIER", 0.0, "MODEL.RESNETS.WIDTH_MULTIPLIER 0.0"),
        ("NORM", "Batch", "MODEL.RESNETS.NORM 'Batch'"),
        ("RADIX", 3, "MODEL.RESNETS.RADIX 3"),
    ],
)
def test_settings_that_cannot_be_used(cfg: CfgNode, key: str, value: object, message: str) -> None:
    cfg.MODEL.RESNETS[key] = value
    with pytest.raises(ConfigError, match=message):
        build_backbone(cfg)


@pytest.mark.parametrize("groups", [0, 3])
def test_offset_groups_divide_the_channels(cfg: CfgNode, groups: int) -> None:
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, False, False]
    cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS = groups
    with pytest.raises(ConfigError, match=f"DEFORM_NUM_GROUPS {groups}: expected a divisor of the 16 channels of res3"):
        build_backbone(cfg)


def test_images_of_other_than_three_channels_are_refused(cfg: CfgNode) -> None:
    with pytest.raises(ConfigError, match="MODEL.PIXEL_MEAN: 1 channels; ResNeSt's stem takes 3"):
        build_backbone(cfg, ShapeSpec(channels=1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("deformable", [False, True])
def test_compiles_into_one_graph(deformable: bool, training: bool) -> None:
    torch.manual_seed(0)
    options = {"deform_on_per_stage": (False, True, True, True), "deform_modulated": True} if deformable else {}
    model = ResNeSt(14, width_multiplier=0.25, **options).train(training)
    images = torch.rand(2, 3, 64, 64)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(images)
    assert explained.graph_count == 1 and explained.graph_break_count == 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = model(images)
    model.load_state_dict(before)
    found = compiled(images)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    sum(value.square().mean() for value in found.values()).backward()
    assert all(value.grad is not None for value in model.parameters())


def test_gradients_given_to_the_features_are_not_written_over() -> None:
    """Between blocks, ReLU writes over its gradient; what leaves a stage may be somebody else's."""
    torch.manual_seed(0)
    model = ResNeSt(26, width_multiplier=0.25, out_features=["stem", *STAGES]).eval()
    features = list(model(torch.randn(1, 3, 64, 64)).values())
    given = [torch.randn_like(feature) for feature in features]
    kept = [gradient.clone() for gradient in given]
    torch.autograd.backward(features, given)
    for gradient, before in zip(given, kept, strict=True):
        assert torch.equal(gradient, before)


@pytest.mark.parametrize(("wanted", "found"), [([], ["res4"]), (["res3", "res4"], ["res4", "res5"])])
def test_a_pyramid_of_maps_that_are_not_there(wanted: list[str], found: list[str]) -> None:
    """The first is what Detectron2's own defaults are."""
    cfg = default_config()
    cfg.MODEL.BACKBONE.NAME = "build_resnest_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.RESNETS.OUT_FEATURES = wanted, found
    with pytest.raises(ConfigError, match=r"MODEL.FPN.IN_FEATURES \[.*\]: expected some of MODEL.RESNETS.OUT_FEATURES"):
        build_backbone(cfg)
