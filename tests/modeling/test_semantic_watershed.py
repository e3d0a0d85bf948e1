from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_model
from detectron2.structures import BitMasks, BoxMode, Instances
from pycocotools import mask as mask_util
from torch import nn

from cupre_d2 import add_cupre_config
from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
from cupre_d2.evaluation.label_evaluator import LabelEvaluator
from cupre_d2.modeling.meta_arch.semantic_watershed import SemanticWatershed, UNetDecoder
from cupre_d2.modeling.watershed import Thresholds, to_target

NAME = "semantic_watershed_test"


class TinyEncoder(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.coarse = nn.Conv2d(6, 10, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = torch.relu(self.fine(x))
        return {"res2": fine, "res3": torch.relu(self.coarse(fine))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=6, stride=4), "res3": ShapeSpec(channels=10, stride=8)}


def make(**settings: Any) -> SemanticWatershed:
    torch.manual_seed(0)
    options = {"channels": (12, 8, 8), "pixel_mean": (100.0, 100.0, 100.0), "pixel_std": (50.0, 50.0, 50.0)}
    return SemanticWatershed(encoder=TinyEncoder(), **{**options, **settings})


def cells(height: int, width: int, seed: int) -> torch.Tensor:
    """A label image of four cells, of which two touch."""
    labels = torch.zeros(height, width, dtype=torch.long)
    y, x = np.random.default_rng(seed).integers(0, 6, 2)
    labels[2 + y : 14 + y, 2 + x : 12 + x], labels[2 + y : 14 + y, 12 + x : 22 + x] = 1, 2
    labels[-14:-3, 3:15], labels[-12:-2, -14:-3] = 3, 4
    return labels


def example(height: int = 40, width: int = 40, seed: int = 0) -> dict[str, Any]:
    labels = cells(height, width, seed)
    noise = np.random.default_rng(seed).normal(0, 5, (3, height, width))
    image = torch.from_numpy(noise).float() + 60 + 120 * (labels > 0)
    # Seams are darker, or nothing would show where cells touch.
    image[:, to_target(labels, "inner", 1) == 2] -= 40
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(torch.stack([labels == number for number in range(1, 5)]))
    return {"image": image, "instances": instances, "image_id": seed, "height": height, "width": width}


class Oracle(nn.Module):
    """In place of the decoder: logits of the target of each example, which the padded image is told by its size."""

    def __init__(self, model: SemanticWatershed, examples: list[dict[str, Any]]) -> None:
        super().__init__()
        self.stride = model.decoder.stride
        self.targets = [to_target(cells(*e["image"].shape[1:], e["image_id"]), model.border, 1) for e in examples]

    def forward(self, images: torch.Tensor, features: object) -> torch.Tensor:
        # Padding is said to be cell, which must not show.
        padded = torch.ones(len(images), *images.shape[2:], dtype=torch.long)
        for place, target in zip(padded, self.targets, strict=True):
            place[: target.shape[0], : target.shape[1]] = target
        return 20 * nn.functional.one_hot(padded, 3).permute(0, 3, 1, 2).float()


def perfect(examples: list[dict[str, Any]], **settings: Any) -> SemanticWatershed:
    model = make(**settings).eval()
    model.decoder = Oracle(model, examples)
    model.predictor = nn.Identity()
    return model


@pytest.mark.parametrize("sizes", [[(40, 40)], [(33, 47), (40, 64), (57, 35)], [(41, 41), (41, 41)]])
def test_any_size_gives_its_cells_back(sizes: list[tuple[int, int]]) -> None:
    examples = [example(*size, seed) for seed, size in enumerate(sizes)]
    with torch.no_grad():
        outputs = perfect(examples)(examples)
    for inputs, output in zip(examples, outputs, strict=True):
        found = output["instances"]
        assert found.image_size == tuple(inputs["image"].shape[1:])
        truth = {mask.numpy().tobytes() for mask in inputs["instances"].gt_masks.tensor}
        assert {mask.numpy().tobytes() for mask in found.pred_masks} == truth
        assert torch.allclose(found.scores, torch.ones(4))


@pytest.mark.parametrize(("height", "width"), [(80, 80), (20, 20), (100, 61)])
def test_results_of_the_record_s_size(height: int, width: int) -> None:
    inputs = {**example(), "height": height, "width": width}
    with torch.no_grad():
        found = perfect([inputs])([inputs])[0]["instances"]
    assert found.image_size == (height, width) and found.pred_masks.shape == (4, height, width)
    areas = found.pred_masks.sum((1, 2)) / (height * width)
    truth = torch.stack([cells(40, 40, 0) == number for number in range(1, 5)]).sum((1, 2)) / 1600
    assert torch.allclose(areas.sort().values, truth.sort().values, rtol=0.1)
    assert torch.allclose(found.scores, torch.ones(4))
    boxes = found.pred_boxes.tensor
    assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()


def test_cells_smaller_than_a_pixel_of_the_result_are_left_out() -> None:
    inputs = {**example(), "height": 2, "width": 2}
    with torch.no_grad():
        found = perfect([inputs])([inputs])[0]["instances"]
    assert 0 < len(found) < 4 and found.pred_masks.any((1, 2)).all() and len(found.scores) == len(found.pred_masks)


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (64, 31)])
def test_forward_of_odd_sizes(size: tuple[int, int]) -> None:
    model = make()
    image = torch.rand(3, *size) * 255
    instances = Instances(size)
    instances.gt_masks = BitMasks(torch.zeros(0, *size))
    loss = model([{"image": image, "instances": instances}])["loss_semantic"]
    assert torch.isfinite(loss)
    with torch.no_grad():
        found = model.eval()([{"image": image}])[0]["instances"]
    assert found.image_size == size


def test_padding_does_not_count() -> None:
    """The loss of two images of different size is that of their pixels."""
    small, large = example(33, 35, 1), example(48, 56, 2)
    model = make(norm="")
    model.decoder = Oracle(model, [small, large])
    model.predictor = nn.Identity()
    # The oracle borders are 1 wide, the targets 2: where they differ the loss is 20.
    loss = model([small, large])["loss_semantic"].item()
    differ = [
        (to_target(cells(*e["image"].shape[1:], e["image_id"]), "inner", 1) != _target(e)).flatten() for e in (small, large)
    ]
    assert loss == pytest.approx(20 * torch.cat(differ).float().mean().item(), rel=1e-4)


def _target(inputs: dict[str, Any]) -> torch.Tensor:
    return to_target(cells(*inputs["image"].shape[1:], inputs["image_id"]), "inner", 2)


def test_an_image_without_cells() -> None:
    inputs = example()
    model = make().eval()
    with torch.no_grad():
        nn.init.zeros_(model.predictor.weight)
        model.predictor.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
        found = model([inputs])[0]["instances"]
    assert len(found) == 0 and found.pred_masks.shape == (0, 40, 40)


def test_thresholds_are_used() -> None:
    inputs = example()
    with torch.no_grad():
        nothing = perfect([inputs], thresholds=Thresholds(seed=1.0))([inputs])[0]["instances"]
    assert len(nothing) == 0


@pytest.mark.parametrize("border", ["inner", "outer", "both"])
def test_learns_a_toy(border: str) -> None:
    model = make(border=border, border_width=1, norm="GN", gn_groups=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    examples = [example(40, 40, seed) for seed in range(4)]
    losses = []
    for _ in range(60):
        loss = model(examples)["loss_semantic"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]
    with torch.no_grad():
        counts = [len(output["instances"]) for output in model.eval()(examples)]
    assert 8 <= sum(counts) <= 24


def test_evaluators_accept_its_output() -> None:
    examples = [example(40, 48, seed) for seed in range(2)]
    records = [
        {
            **{name: inputs[name] for name in ("image_id", "height", "width")},
            "file_name": "",
            "annotations": [
                {
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": rle,
                    "category_id": 0,
                }
                for rle in (
                    mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
                    for mask in inputs["instances"].gt_masks.tensor
                )
            ],
        }
        for inputs in examples
    ]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["cell"])
    try:
        evaluators: list[Any] = [CellCOCOEvaluator(NAME, [100]), LabelEvaluator(NAME)]
        results = []
        for evaluator in evaluators:
            evaluator.reset()
            with torch.no_grad():
                evaluator.process(examples, perfect(examples)(examples))
            results.append(evaluator.evaluate())
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
    coco, labels = results
    assert coco["segm"]["AP"] == coco["bbox"]["AP"] == pytest.approx(100)
    assert labels["labels"]["DSB2018"] == labels["labels"]["PQ"] == pytest.approx(100)


def test_an_image_without_annotations_or_masks() -> None:
    inputs = example()
    with pytest.raises(DatasetError, match="cells.png: no annotations; expected instances"):
        make()([{"image": inputs["image"], "file_name": "cells.png"}])
    with pytest.raises(ConfigError, match="MODEL.MASK_ON: cells.png comes without masks"):
        make()([{"image": inputs["image"], "file_name": "cells.png", "instances": Instances((40, 40))}])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"border": "middle"}, "MODEL.SEMANTIC_WATERSHED.BORDER 'middle'"),
        ({"border_width": 0}, "MODEL.SEMANTIC_WATERSHED.BORDER_WIDTH 0"),
        ({"channels": (8, 8)}, r"MODEL.UNET.CHANNELS \[8, 8\]: expected 3 positive numbers"),
        ({"channels": (8, 8, 0)}, "MODEL.UNET.CHANNELS"),
        ({"norm": "XN"}, "MODEL.UNET.NORM 'XN'"),
    ],
)
def test_bad_settings(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make(**settings)


def test_decoder_needs_maps_to_join() -> None:
    with pytest.raises(ConfigError, match="OUT_FEATURES.*res5.*expected the maps that the decoder joins"):
        UNetDecoder({"res5": ShapeSpec(channels=8, stride=32)}, (8,) * 5)
    with pytest.raises(ConfigError, match="map odd of stride 3; expected a power of 2"):
        UNetDecoder({"odd": ShapeSpec(channels=8, stride=3), "res5": ShapeSpec(channels=8, stride=32)}, (8,) * 5)


def config(name: str, depth: int) -> CfgNode:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticWatershed"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.UNET.CHANNELS = (16, 16, 8, 8, 8)
    cfg.MODEL.SEMANTIC_WATERSHED.SEED_THRESHOLD = 0.7
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    if "resnest" in name:
        cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 0.25
    return cfg


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("build_resnet_backbone", 18),
        ("build_resnet_backbone", 34),
        ("build_resnet_backbone", 50),
        ("build_resnet_fpn_backbone", 18),
        ("build_resnest_backbone", 14),
    ],
)
def test_any_backbone_from_a_config(name: str, depth: int) -> None:
    model = build_model(config(name, depth))
    assert isinstance(model, META_ARCH_REGISTRY.get("SemanticWatershed"))
    assert model.decoder.latent == "res5" and model.decoder.stride == 32
    assert model.thresholds.seed == 0.7 and model.thresholds.relief == 0.3
    keys = model.state_dict()
    assert any(key.startswith("backbone.bottom_up.res5.0.conv1") for key in keys)
    assert not any("fpn" in key or "pixel_mean" in key for key in keys)
    loss = model([example(50, 70), example(64, 40)])["loss_semantic"]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
