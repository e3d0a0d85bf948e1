"""ResNeSt against an implementation written to be obvious, and against PyPI's `resnest` and `timm`, on the same weights.

Rounding is measured beside the largest value of each tensor. Batch norms in training over the few values that small
images leave in res5 amplify rounding itself, so that arithmetic is compared in float64. In float32 a ReLU whose input
lies within rounding of 0 may pass its gradient in one implementation and not in the other: gradients are compared again
with other weights and images where they differ, outputs never.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import resnest.torch
import timm
import torch
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor
from torch.nn import functional

from cupre_d2.modeling.backbone.resnest import STAGES, ResNeSt
from cupre_d2.modeling.splat import SplitAttention, split_deformation

BLOCKS = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 200: (3, 24, 36, 3), 269: (3, 30, 48, 8)}
DEFORMABLE = {"deform_on_per_stage": (False, True, True, True), "deform_modulated": True, "deform_num_groups": 2}
PLAIN: dict[str, Any] = {}
ATTEMPTS = 12

Weights = dict[str, Tensor]


def slow_deformable(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, groups: int) -> Tensor:
    """3x3 convolution, padding 1, each of whose taps samples N x C x H x W `x` between pixels, 0 outside.

    `offsets`: N x G x 9 x (y, x) x H x W; `mask`: N x G x 9 x H x W.
    """
    batch, channels, height, width = x.shape
    taps = torch.tensor(list(product((-1, 0, 1), repeat=2)))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # N x C x 9 x H x W from here on.
    shared = channels // offsets.shape[1]
    y = (rows + taps[:, 0].view(9, 1, 1) + offsets[:, :, :, 0]).repeat_interleave(shared, 1)
    x_ = (columns + taps[:, 1].view(9, 1, 1) + offsets[:, :, :, 1]).repeat_interleave(shared, 1)
    image = torch.arange(batch).view(-1, 1, 1, 1, 1)
    channel = torch.arange(channels).view(-1, 1, 1, 1)
    sampled = 0
    for corner_y, corner_x in product((0, 1), repeat=2):
        row, column = y.floor().long() + corner_y, x_.floor().long() + corner_x
        share = (1 - (y - row).abs()) * (1 - (x_ - column).abs())
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        value = x[image, channel, row.clamp(0, height - 1), column.clamp(0, width - 1)]
        sampled = sampled + torch.where(inside, share * value, 0)
    modulated = (sampled * mask.repeat_interleave(shared, 1)).reshape(batch, channels * 9, height, width)
    return functional.conv2d(modulated, weight.reshape(len(weight), -1, 1, 1), groups=groups)


class Slow:
    """ResNeSt of radix 2 and cardinality 1 from a state dict; 5-d splits, explicit softmax, no layout, nothing in place."""

    def __init__(self, weights: Weights, depth: int, training: bool, deform_groups: int = 0) -> None:
        self.weights, self.depth, self.training, self.deform_groups = weights, depth, training, deform_groups

    def norm(self, name: str, x: Tensor) -> Tensor:
        def of(key: str) -> Tensor:
            return self.weights[f"{name}.{key}"].view(1, -1, 1, 1)

        mean, variance = of("running_mean"), of("running_var")
        if self.training:
            mean = x.mean((0, 2, 3), keepdim=True)
            variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * of("weight") + of("bias")

    def conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        out = functional.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **options)
        return self.norm(f"{name}.norm", out) if f"{name}.norm.weight" in self.weights else out

    def split_attention(self, block: str, x: Tensor) -> Tensor:
        name = f"{block}.conv2"
        if f"{block}.conv2_offset.weight" in self.weights:
            maps = self.conv(f"{block}.conv2_offset", x, padding=1, groups=self.deform_groups)
            first, second, third = maps.chunk(3, dim=1)
            shape = (len(x), self.deform_groups, 9, 2, *x.shape[2:])
            offsets = torch.cat((first, second), dim=1).reshape(shape)
            mask = torch.sigmoid(third).reshape(len(x), self.deform_groups, 9, *x.shape[2:])
            maps = slow_deformable(x, offsets, mask, self.weights[f"{name}.conv.weight"], groups=2)
        else:
            maps = functional.conv2d(x, self.weights[f"{name}.conv.weight"], padding=1, groups=2)
        maps = torch.relu(self.norm(f"{name}.bn0", maps))
        splits = maps.reshape(len(x), 2, -1, *maps.shape[2:])
        pooled = splits.sum(1).mean((2, 3), keepdim=True)
        hidden = torch.relu(self.norm(f"{name}.bn1", self.conv(f"{name}.fc1", pooled)))
        exponentials = torch.exp(self.conv(f"{name}.fc2", hidden).reshape(len(x), 2, -1, 1, 1))
        return (splits * exponentials / exponentials.sum(1, keepdim=True)).sum(1)

    def block(self, name: str, x: Tensor, stride: int) -> Tensor:
        out = self.split_attention(name, torch.relu(self.conv(f"{name}.conv1", x)))
        if stride > 1:
            out = functional.avg_pool2d(out, 3, stride, padding=1)
        out = self.conv(f"{name}.conv3", out)
        shortcut = x
        if f"{name}.shortcut.weight" in self.weights:
            if stride > 1:
                shortcut = functional.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
            shortcut = self.conv(f"{name}.shortcut", shortcut)
        return torch.relu(out + shortcut)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        for number in (1, 2, 3):
            x = torch.relu(self.conv(f"stem.conv1_{number}", x, stride=2 if number == 1 else 1, padding=1))
        x = functional.max_pool2d(x, 3, 2, padding=1)
        found = {}
        for stage, blocks in zip(STAGES, BLOCKS[self.depth], strict=True):
            for index in range(blocks):
                x = self.block(f"{stage}.{index}", x, stride=2 if index == 0 and stage != "res2" else 1)
            found[stage] = x
        return found

    def pyramid(self, x: Tensor) -> dict[str, Tensor]:
        """p2 to p6 of a state dict of `FPN` whose backbone's keys lack their prefix."""
        found, above = {}, None
        for level, maps in reversed(list(enumerate(self.features(x).values(), start=2))):
            lateral = self.conv(f"fpn_lateral{level}", maps)
            above = lateral if above is None else lateral + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
            found[f"p{level}"] = self.conv(f"fpn_output{level}", above, padding=1)
        return {**found, "p6": found["p5"][:, :, ::2, ::2]}


def random_weights(model: torch.nn.Module) -> None:
    """Statistics and scales away from 0 and 1; residuals small enough that deep networks neither grow nor fade."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("norm.weight", "bn0.weight", "bn1.weight", "running_var")):
                value.uniform_(0.5, 1.5)
                if ".conv3.norm.weight" in name:
                    value.mul_(0.3)
            elif name.endswith(("norm.bias", "bn0.bias", "bn1.bias", "running_mean")):
                value.normal_(0, 0.1)
            elif name.endswith("conv2_offset.bias"):
                # Away from whole pixels, where a sample's gradient jumps and rounding decides to which side.
                value.uniform_(0.2, 0.4)
            elif name.endswith("conv2_offset.weight"):
                value.normal_(0, 0.002)


def build(depth: int, seed: int = 0, **options: Any) -> ResNeSt:
    torch.manual_seed(seed)
    model = ResNeSt(depth, **options)
    random_weights(model)
    return model


def differing(found: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], bar: float) -> list[str]:
    """Names of the tensors that are further apart than `bar` times the largest value, or 1e-6 where all is rounding."""
    return [
        f"{name}: {(one - other).abs().max():.2g} of {other.abs().max():.2g}"
        for one, other, name in zip(found, expected, names, strict=True)
        if one.shape != other.shape or (one - other).abs().max() > bar * other.abs().max().clamp(min=1e-6)
    ]


@dataclass
class Pair:
    """Two implementations on the same weights, and what to differentiate them by."""

    fast: Callable[[Tensor], Sequence[Tensor]]
    slow: Callable[[Tensor], Sequence[Tensor]]
    parameters: dict[str, tuple[Tensor, Tensor]]


def assert_same_arithmetic(pair: Callable[[int], Pair], count: int, dtype: torch.dtype, bar: float) -> None:
    """Outputs, and gradients of a random direction to all parameters and to the `count` images, are the same."""
    apart: list[str] = []
    for seed in range(ATTEMPTS):
        one = pair(seed)
        images = torch.randn(count, 3, 64, 64).to(dtype).requires_grad_()
        outputs, expected = one.fast(images), one.slow(images)
        assert differing(outputs, expected, [f"output {index}" for index in range(len(outputs))], bar) == []
        directions = [torch.randn(output.shape, dtype=dtype) for output in outputs]
        gradients = [
            torch.autograd.grad(
                sum((value * direction).mean() for value, direction in zip(values, directions, strict=True)),
                [images, *[tensors[index] for tensors in one.parameters.values()]],
            )
            for index, values in enumerate((outputs, expected))
        ]
        apart = differing(*gradients, ["images", *one.parameters], bar)
        if not apart:
            return
    pytest.fail(f"gradients differ in all of {ATTEMPTS} attempts: {apart[:5]}")


DEPTHS = [
    50,
    pytest.param(101, marks=pytest.mark.slow),
    pytest.param(200, marks=pytest.mark.slow),
    pytest.param(269, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", [PLAIN, DEFORMABLE], ids=["plain", "deformable"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_evaluation_equals_the_slow_one(depth: int, options: dict[str, Any]) -> None:
    def pyramids(seed: int) -> Pair:
        model = FPN(build(depth, seed, **options), list(STAGES), 32, norm="BN", top_block=LastLevelMaxPool())
        random_weights(model)
        model.eval()
        weights = {name.removeprefix("bottom_up."): value for name, value in model.state_dict(keep_vars=True).items()}
        slow = Slow(weights, depth, training=False, deform_groups=2)

        def levels(pyramid: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[Tensor], list[Tensor]]:
            return lambda images: [pyramid(images)[f"p{level}"] for level in range(2, 7)]

        return Pair(levels(model), levels(slow.pyramid), {name: (value, value) for name, value in model.named_parameters()})

    assert_same_arithmetic(pyramids, 1, torch.float32, bar=1e-4)


@pytest.mark.parametrize("options", [PLAIN, DEFORMABLE], ids=["plain", "deformable"])
@pytest.mark.parametrize("depth", [14, pytest.param(50, marks=pytest.mark.slow)])
def test_training_equals_the_slow_one(depth: int, options: dict[str, Any]) -> None:
    def backbones(seed: int) -> Pair:
        model = build(depth, seed, **options).double()
        slow = Slow(model.state_dict(keep_vars=True), depth, training=True, deform_groups=2)
        return Pair(
            lambda images: list(model(images).values()),
            lambda images: list(slow.features(images).values()),
            {name: (value, value) for name, value in model.named_parameters()},
        )

    assert_same_arithmetic(backbones, 2, torch.float64, bar=1e-6)


def peer_name(name: str) -> str:
    """The name in `resnest` and `timm` of one of our state dict's keys."""
    for number, index in ((1, 0), (2, 3), (3, 6)):
        norm = "bn1" if number == 3 else f"conv1.{index + 1}"
        name = name.replace(f"stem.conv1_{number}.norm", norm).replace(f"stem.conv1_{number}", f"conv1.{index}")
    for stage in range(2, 6):
        name = name.replace(f"res{stage}.", f"layer{stage - 1}.")
    name = name.replace("conv1.norm", "bn1") if name.startswith("layer") else name
    return name.replace("conv3.norm", "bn3").replace("shortcut.norm", "downsample.2").replace("shortcut", "downsample.1")


PEERS: dict[str, Callable[[int], torch.nn.Module]] = {
    "resnest": lambda depth: getattr(resnest.torch, f"resnest{depth}")(),
    "timm": lambda depth: timm.create_model(f"resnest{depth}{'d' if depth == 50 else 'e'}"),
}


@pytest.mark.parametrize("peer_package", PEERS)
@pytest.mark.parametrize(
    ("depth", "training"),
    [(50, True), *[pytest.param(depth, False, marks=pytest.mark.slow) for depth in (50, 101, 200, 269)]],
)
def test_equals_the_published_packages(depth: int, training: bool, peer_package: str) -> None:
    dtype = torch.float64 if training else torch.float32

    def packages(seed: int) -> Pair:
        model, peer = build(depth, seed), PEERS[peer_package](depth)
        theirs = {name: value for name, value in peer.named_parameters() if not name.startswith("fc.")}
        assert sum(value.numel() for value in model.parameters()) == sum(value.numel() for value in theirs.values())
        weights = {peer_name(name): value for name, value in model.state_dict().items()}
        missing, unexpected = peer.load_state_dict(weights, strict=False)
        assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])
        model.to(dtype).train(training)
        peer.to(dtype).train(training)

        def features(images: Tensor) -> list[Tensor]:
            seen: list[Tensor] = []
            stages = (peer.layer1, peer.layer2, peer.layer3, peer.layer4)
            hooks = [stage.register_forward_hook(lambda module, args, output: seen.append(output)) for stage in stages]
            peer(images)
            for hook in hooks:
                hook.remove()
            return seen

        return Pair(
            lambda images: list(model(images).values()),
            features,
            {name: (value, theirs[peer_name(name)]) for name, value in model.named_parameters()},
        )

    assert_same_arithmetic(packages, 2, dtype, bar=1e-6 if training else 1e-4)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("groups", "radix", "deform_groups"), [(1, 2, 1), (1, 2, 2), (2, 2, 4), (1, 1, 3)])
def test_deformable_convolution_equals_the_slow_one(groups: int, radix: int, deform_groups: int, modulated: bool) -> None:
    """With offsets far beyond the image's border, too; of gradients to the input, the offsets, the mask, the weight."""
    torch.manual_seed(0)
    layer = SplitAttention(24, groups=groups, radix=radix, deformable=True, norm="").double()
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64, requires_grad=True)
    maps = 2 * torch.randn(2, (27 if modulated else 18) * deform_groups, 5, 7, dtype=torch.float64)
    maps.requires_grad_()

    fast = layer.conv(x, *split_deformation(maps, deform_groups))

    offsets = maps[:, : 18 * deform_groups].reshape(2, deform_groups, 9, 2, 5, 7)
    mask = torch.ones(2, deform_groups, 9, 5, 7, dtype=torch.float64)
    if modulated:
        mask = torch.sigmoid(maps.chunk(3, dim=1)[2]).reshape(mask.shape)
    slow = slow_deformable(x, offsets, mask, layer.conv.weight, groups * radix)
    torch.testing.assert_close(fast, slow)
    variables = [x, maps, layer.conv.weight]
    direction = torch.randn_like(slow)
    torch.testing.assert_close(
        torch.autograd.grad((fast * direction).sum(), variables), torch.autograd.grad((slow * direction).sum(), variables)
    )
