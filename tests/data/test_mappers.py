import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.config import add_cupre_config
from cupre_d2.data.mappers import DetectionMapper, TwoViewMapper
from cupre_d2.errors import ConfigError, DatasetError

HEIGHT, WIDTH = 30, 40


@pytest.fixture()
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    cfg.INPUT.MIN_SIZE_TEST = 60
    cfg.INPUT.VIEWS.SIZE = 16
    return cfg


@pytest.fixture()
def record(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    annotations = [box_annotation(5, 5, 10, 10), box_annotation(20, 8, 12, 16)]
    return {
        "file_name": str(path),
        "image_id": "image",
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": annotations,
    }


def box_annotation(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return {
        "bbox": [x, y, width, height],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": mask_util.encode(mask),
        "category_id": 0,
        "iscrowd": 0,
    }


def as_polygons(record: dict[str, Any]) -> dict[str, Any]:
    record = copy.deepcopy(record)
    for annotation in record["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return record


# ---- two views


def test_two_views(cfg: CfgNode, record: dict[str, Any]) -> None:
    before = copy.deepcopy(record)
    output = TwoViewMapper(cfg)(record)
    assert record == before
    assert set(output) == {"query", "key", "file_name", "image_id"}
    assert output["image_id"] == "image" and output["file_name"] == record["file_name"]
    for name in ("query", "key"):
        assert output[name].shape == (3, 16, 16) and output[name].dtype == torch.uint8
    assert not torch.equal(output["query"], output["key"])


def test_unlabeled_record(cfg: CfgNode, record: dict[str, Any]) -> None:
    del record["annotations"]
    assert "query" in TwoViewMapper(cfg)(record)


def test_formats_are_the_same_views_in_other_channel_orders(cfg: CfgNode, record: dict[str, Any]) -> None:
    views = {}
    for format in ("RGB", "BGR", "L"):
        cfg.INPUT.FORMAT = format
        torch.manual_seed(3)
        views[format] = TwoViewMapper(cfg)(record)["query"]
    assert torch.equal(views["RGB"].flip(0), views["BGR"])
    assert torch.equal(views["L"][0], views["L"][2])


def test_every_view_key_reaches_the_views(cfg: CfgNode, record: dict[str, Any]) -> None:
    bad = {"SIZE": 0, "SCALE": (0, 1), "JITTER": (1, 1, 1, 1), "JITTER_PROB": 2.0, "GRAY_PROB": 2.0, "BLUR_PROB": 2.0}
    for key, value in {**bad, "BLUR_SIGMA": (0, 1)}.items():
        wrong = cfg.clone()
        wrong.INPUT.VIEWS[key] = value
        with pytest.raises(ConfigError, match=f"INPUT.VIEWS.{key} "):
            TwoViewMapper(wrong)


def test_views_of_stretched_images(cfg: CfgNode, record: dict[str, Any]) -> None:
    dull = np.random.default_rng(0).integers(100, 110, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(dull).save(record["file_name"])
    cfg.INPUT.VIEWS.JITTER_PROB = cfg.INPUT.VIEWS.BLUR_PROB = cfg.INPUT.VIEWS.GRAY_PROB = 0.0
    assert np.ptp(TwoViewMapper(cfg)(record)["query"].numpy()) > 100
    assert np.ptp(TwoViewMapper(cfg)({**record, "percentiles": None})["query"].numpy()) < 15
    cfg.INPUT.PERCENTILES = ()
    assert np.ptp(TwoViewMapper(cfg)(record)["query"].numpy()) < 15


@pytest.mark.parametrize("percentiles", [(50,), (99.9, 0.1), (-1, 99), (1, 101), ("a", "b")])
def test_wrong_percentiles(cfg: CfgNode, percentiles: tuple) -> None:
    cfg.INPUT.PERCENTILES = percentiles
    for mapper in (TwoViewMapper, DetectionMapper):
        with pytest.raises(ConfigError, match="INPUT.PERCENTILES"):
            mapper(cfg)


# ---- detection


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_training_as_detectron2(cfg: CfgNode, record: dict[str, Any], mask_format: str, crop: bool, flip: str) -> None:
    if crop and mask_format == "polygon":
        pytest.importorskip("shapely", reason="Detectron2 crops polygons with shapely")
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.CROP.ENABLED = crop
    cfg.INPUT.RANDOM_FLIP = flip
    record = as_polygons(record) if mask_format == "polygon" else record
    before = copy.deepcopy(record)
    ours, theirs = DetectionMapper(cfg, True), DatasetMapper(cfg, True)
    for seed in range(4):
        np.random.seed(seed)
        output = ours(record)
        np.random.seed(seed)
        expected = theirs(record)
        assert record == before
        assert output.keys() == expected.keys()
        assert torch.equal(output["image"], expected["image"]) and output["image"].dtype == torch.uint8
        instances, others = output["instances"], expected["instances"]
        assert torch.equal(instances.gt_boxes.tensor, others.gt_boxes.tensor)
        assert torch.equal(instances.gt_classes, others.gt_classes)
        if mask_format == "bitmask":
            assert torch.equal(instances.gt_masks.tensor, others.gt_masks.tensor)
        else:
            assert isinstance(instances.gt_masks, PolygonMasks)
            assert torch.equal(instances.gt_masks.area(), others.gt_masks.area())


def test_masks_follow_the_resize(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.RANDOM_FLIP = "none"
    output = DetectionMapper(cfg, True)(record)
    assert output["image"].shape == (3, 60, 80)
    instances = output["instances"]
    assert instances.image_size == (60, 80)
    assert instances.gt_boxes.tensor.tolist() == [[10, 10, 30, 30], [40, 16, 64, 48]]
    assert instances.gt_masks.tensor.sum((1, 2)).tolist() == [400, 768]


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_polygons_as_arrays(cfg: CfgNode, record: dict[str, Any], mask_format: str, flip: str) -> None:
    """As the COCO reader stores them; Detectron2's transforms would move them in place, in the record."""
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.RANDOM_FLIP = flip
    lists = as_polygons(record)
    arrays = copy.deepcopy(lists)
    for annotation in arrays["annotations"]:
        annotation["segmentation"] = [np.array(polygon, np.float64) for polygon in annotation["segmentation"]]
    before = copy.deepcopy(arrays)
    mapper = DetectionMapper(cfg, True)
    for seed in range(4):
        np.random.seed(seed)
        from_lists = mapper(lists)["instances"]
        np.random.seed(seed)
        from_arrays = mapper(arrays)["instances"]
        assert torch.equal(from_lists.gt_boxes.tensor, from_arrays.gt_boxes.tensor)
        if mask_format == "bitmask":
            assert torch.equal(from_lists.gt_masks.tensor, from_arrays.gt_masks.tensor)
        else:
            pairs = zip(from_lists.gt_masks.polygons, from_arrays.gt_masks.polygons, strict=True)
            assert all(np.array_equal(one[0], other[0]) for one, other in pairs)
    for annotation, original in zip(arrays["annotations"], before["annotations"], strict=True):
        np.testing.assert_array_equal(annotation.pop("segmentation"), original.pop("segmentation"))
    assert arrays == before


def test_polygons_of_whole_numbers_are_scaled_exactly(cfg: CfgNode, record: dict[str, Any]) -> None:
    """Detectron2 rounds them down to whole numbers after a resize."""
    cfg.INPUT.MASK_FORMAT = "polygon"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (45,)
    polygon = DetectionMapper(cfg, True)(as_polygons(record))["instances"].gt_masks.polygons[0][0]
    np.testing.assert_allclose(polygon, np.array([5, 5, 15, 5, 15, 15, 5, 15]) * 1.5)


def test_inference_drops_annotations(cfg: CfgNode, record: dict[str, Any]) -> None:
    output = DetectionMapper(cfg, False)(record)
    assert "annotations" not in output and "instances" not in output
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)
    assert output["image"].shape == (3, 60, 80)
    assert "annotations" in record


def test_grey_has_three_channels(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.FORMAT = "L"
    assert DetectionMapper(cfg, True)(record)["image"].shape[0] == 3


def test_rle_counts_as_text(cfg: CfgNode, record: dict[str, Any]) -> None:
    """As read from JSON."""
    text = copy.deepcopy(record)
    for annotation in text["annotations"]:
        annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].decode("ascii")
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = DetectionMapper(cfg, True)
    masks = [mapper(which)["instances"].gt_masks.tensor for which in (record, text)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("mask_format, kind", [("bitmask", BitMasks), ("polygon", PolygonMasks)])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("crowd", [False, True])
def test_no_instance(cfg: CfgNode, record: dict[str, Any], mask_format: str, kind: type, crop: bool, crowd: bool) -> None:
    """A crowd alone counts as none; it may be an RLE under "polygon" too, as in COCO."""
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.CROP.ENABLED = crop
    record["annotations"] = [{**record["annotations"][0], "iscrowd": 1}] if crowd else []
    output = DetectionMapper(cfg, True)(record)
    instances = output["instances"]
    assert "annotations" not in output
    assert len(instances) == 0 and instances.image_size == output["image"].shape[1:]
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.dtype == torch.int64
    assert isinstance(instances.gt_masks, kind)


def test_instances_cropped_away(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [4, 4]
    mapper = DetectionMapper(cfg, True)
    np.random.seed(0)
    counts = {len(mapper(record)["instances"]) for _ in range(40)}
    assert 0 in counts and 1 in counts


def test_without_masks(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.MODEL.MASK_ON = False
    cfg.INPUT.MASK_FORMAT = "polygon"
    mapper = DetectionMapper(cfg, True)
    assert not mapper(record)["instances"].has("gt_masks")
    assert not mapper({**record, "annotations": []})["instances"].has("gt_masks")


def test_rle_under_polygon(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.MASK_FORMAT = "polygon"
    with pytest.raises(ConfigError, match="INPUT.MASK_FORMAT polygon: annotation 0 of .*image.png.*bitmask"):
        DetectionMapper(cfg, True)(record)


def test_annotation_without_mask(cfg: CfgNode, record: dict[str, Any]) -> None:
    del record["annotations"][1]["segmentation"]
    with pytest.raises(DatasetError, match="image.png: annotation 1, field segmentation: missing"):
        DetectionMapper(cfg, True)(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_another_size(cfg: CfgNode, record: dict[str, Any], is_train: bool) -> None:
    record["width"] = 50
    with pytest.raises(DatasetError, match="image.png: image of 40x30 pixels; expected .* 50x30"):
        DetectionMapper(cfg, is_train)(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_a_records_page_and_channels(cfg: CfgNode, record: dict[str, Any], is_train: bool) -> None:
    stack = np.random.default_rng(0).integers(0, 60000, (3, HEIGHT, WIDTH, 5), dtype=np.uint16)
    file = Path(record["file_name"]).with_name("stack.tif")
    tifffile.imwrite(file, stack, photometric="minisblack", planarconfig="contig")
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (HEIGHT,), HEIGHT
    record = {**record, "file_name": str(file), "page": 2, "channels": (4, 1, 0), "percentiles": None}
    output = DetectionMapper(cfg, is_train)(record)
    expected = np.rint(stack[2][:, :, [0, 1, 4]] / 65535 * 255)
    np.testing.assert_array_equal(output["image"].numpy(), expected.transpose(2, 0, 1))


def test_unreadable_image(cfg: CfgNode, record: dict[str, Any]) -> None:
    Path(record["file_name"]).write_bytes(b"")
    for mapper in (TwoViewMapper(cfg), DetectionMapper(cfg, True), DetectionMapper(cfg, False)):
        with pytest.raises(DatasetError, match="image.png"):
            mapper(record)
