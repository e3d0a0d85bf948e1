"""Every key and shape of the published ResNeSt-200 cascades, plain and deformable (shared/facts/cupre.md §3).

The list in resnest200_cascade_keys.txt was written by `published` below, from the facts' rules, without our network.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from cupre_d2.config import add_cupre_config

Shapes = dict[str, tuple[int, ...]]

LIST = Path(__file__).with_name("resnest200_cascade_keys.txt")
CONFIGS = {
    "plain": "configs/coco/mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x.yaml",
    "dcn": "configs/coco/mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x.yaml",
}
BLOCKS, STEM, CLASSES, ANCHORS, STEPS = (3, 24, 36, 3), 64, 80, 3, 3


def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for value in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{value}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def conv(name: str, out: int, into: int, kernel: int, *, bias: bool = False) -> Iterator[tuple[str, tuple[int, ...]]]:
    """With a bias, or with a norm."""
    yield f"{name}.weight", (out, into, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)
    else:
        yield from norm(f"{name}.norm", out)


def linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def block(name: str, into: int, width: int, deformable: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from conv(f"{name}.conv1", width, into, 1)
    # Radix 2: twice the channels out, in two groups; an inter width of a quarter of C x radix, at least 32.
    hidden = max(width * 2 // 4, 32)
    yield f"{name}.conv2.conv.weight", (2 * width, width // 2, 3, 3)
    yield from norm(f"{name}.conv2.bn0", 2 * width)
    yield from conv(f"{name}.conv2.fc1", hidden, width, 1, bias=True)
    yield from norm(f"{name}.conv2.bn1", hidden)
    yield from conv(f"{name}.conv2.fc2", 2 * width, hidden, 1, bias=True)
    if deformable:
        # 27 outputs a group, two groups, grouped.
        yield from conv(f"{name}.conv2_offset", 54, width // 2, 3, bias=True)
    yield from conv(f"{name}.conv3", 4 * width, width, 1)
    if into != 4 * width:
        yield from conv(f"{name}.shortcut", 4 * width, into, 1)


def keys(deformable: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number, (out, into) in enumerate(((STEM, 3), (STEM, STEM), (2 * STEM, STEM)), start=1):
        yield from conv(f"backbone.bottom_up.stem.conv1_{number}", out, into, 3)
    into = 2 * STEM
    for level, blocks in enumerate(BLOCKS, start=2):
        width = 64 * 2 ** (level - 2)
        for index in range(blocks):
            yield from block(f"backbone.bottom_up.res{level}.{index}", into, width, deformable and level > 2)
            into = 4 * width
        yield from conv(f"backbone.fpn_lateral{level}", 256, into, 1)
        yield from conv(f"backbone.fpn_output{level}", 256, 256, 3)
    rpn = "proposal_generator.rpn_head"
    yield from conv(f"{rpn}.conv", 256, 256, 3, bias=True)
    yield from conv(f"{rpn}.objectness_logits", ANCHORS, 256, 1, bias=True)
    yield from conv(f"{rpn}.anchor_deltas", 4 * ANCHORS, 256, 1, bias=True)
    for step in range(STEPS):
        for number in range(1, 5):
            yield from conv(f"roi_heads.box_head.{step}.conv{number}", 256, 256, 3)
        yield from linear(f"roi_heads.box_head.{step}.fc1", 1024, 256 * 7 * 7)
        yield from linear(f"roi_heads.box_predictor.{step}.cls_score", CLASSES + 1, 1024)
        yield from linear(f"roi_heads.box_predictor.{step}.bbox_pred", 4, 1024)
    for number in range(1, 9):
        yield from conv(f"roi_heads.mask_head.mask_fcn{number}", 256, 256, 3)
    yield from conv("roi_heads.mask_head.deconv", 256, 256, 2, bias=True)
    yield from conv("roi_heads.mask_head.predictor", CLASSES, 256, 1, bias=True)


def published() -> list[str]:
    """Lines `key AxBx...`; those that only the deformable cascade has end in ` dcn`."""
    plain = dict(keys(deformable=False))
    return sorted(
        " ".join([key, "x".join(map(str, shape)) or "scalar", *([] if key in plain else ["dcn"])])
        for key, shape in dict(keys(deformable=True)).items()
    )


def listed(variant: str) -> Shapes:
    lines = [line.split() for line in LIST.read_text().splitlines()]
    return {
        key: () if shape == "scalar" else tuple(map(int, shape.split("x")))
        for key, shape, *only in lines
        if not only or variant == "dcn"
    }


def test_the_list_is_what_the_facts_say() -> None:
    assert LIST.read_text().splitlines() == published()


@pytest.mark.parametrize("variant", CONFIGS)
def test_keys_and_shapes_are_the_published_ones(variant: str) -> None:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.merge_from_file(CONFIGS[variant])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == listed(variant)
