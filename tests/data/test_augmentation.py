import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.structures import BoxMode

from cupre_d2.config import default_config
from cupre_d2.data.augmentation import ChannelSwap, Inversion, QuarterTurn, ScaledCrop, cell_augmentations
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.loaders import CropMapper, build_detection_loader, draw_samples


@pytest.fixture()
def cfg() -> CfgNode:
    cfg = default_config()
    cfg.INPUT.CELL_AUGMENTATION.SIZE = 48
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.MASK_ON = True
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    return cfg


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_move_points_as_pixels(turns: int) -> None:
    image = np.zeros((5, 7), np.uint8)
    image[1, 2] = 255
    turned = QuarterTurn(turns, 5, 7)
    row, column = np.argwhere(turned.apply_image(image))[0]
    # The middle of the pixel.
    assert turned.apply_coords(np.array([[2.5, 1.5]])).tolist() == [[column + 0.5, row + 0.5]]


def test_colours_keep_their_places() -> None:
    np.random.seed(0)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    swapped = ChannelSwap().get_transform(image).apply_image(image)
    assert np.array_equal(np.sort(swapped, axis=2), image)
    assert np.array_equal(Inversion().get_transform(image).apply_image(image), 255 - image)


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (20, 20), (90, 90), (48, 48)])
def test_crops_have_their_size_and_black_around_them(shape: tuple[int, int]) -> None:
    crop = ScaledCrop(48, (1.0, 1.0), 0.0)
    image = np.full((*shape, 3), 7, np.uint8)
    result = crop.get_transform(image).apply_image(image)
    assert result.shape == (48, 48, 3)
    assert (result[..., 0] == 7).sum() == min(shape[0], 48) * min(shape[1], 48)
    assert np.unique(result).tolist() in ([7], [0, 7])


def test_crops_fall_everywhere_and_scale_as_said() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (80, 80, 3), np.uint8)
    np.random.seed(0)
    corners, factors = set(), []
    for _ in range(300):
        steps = ScaledCrop(40, (0.5, 2.0), 0.25).get_transform(image).transforms
        factors.append(40 / steps[0].w if steps[0].w < 80 else 0.5)
        corners.add((steps[0].x0 > 20, steps[0].y0 > 20))
    assert len(corners) == 4
    assert 0.15 < np.mean([factor != 1 for factor in factors]) < 0.35
    assert 0.5 <= min(factors) < 0.7 and 1.5 < max(factors) <= 2.0


def test_masks_follow_the_image(cfg: CfgNode) -> None:
    """A bright disc's mask covers the disc, whatever was done to both but inversion."""
    rows, columns = np.mgrid[:60, :70]
    disc = (rows - 30) ** 2 + (columns - 25) ** 2 < 150
    image = np.repeat((disc * np.uint8(200))[..., None], 3, axis=2)
    cfg.INPUT.CELL_AUGMENTATION.PROB = 1.0
    cfg.INPUT.CELL_AUGMENTATION.SCALE_PROB = 1.0
    from pycocotools import mask as coco_mask

    annotation = {"bbox": [0, 0, 70, 60], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    for seed in range(10):
        np.random.seed(seed)
        given = T.AugInput(image)
        transforms = T.AugmentationList(cell_augmentations(cfg))(given)
        rle = coco_mask.encode(np.asfortranarray(disc.astype(np.uint8)))
        moved = transform_instance_annotations({**annotation, "segmentation": rle}, transforms, (48, 48))
        mask = moved["segmentation"].astype(bool)
        bright = given.image[..., 0] < 155
        assert mask.shape == (48, 48)
        assert (mask ^ bright).sum() <= 0.15 * max(mask.sum(), 40)


def test_detection_loader_takes_them(cfg: CfgNode, small_datasets: object) -> None:
    cfg.INPUT.CELL_AUGMENTATION.ENABLED = True
    batch = next(iter(build_detection_loader(cfg, get_records("bbbc038_train"))))
    assert all(inputs["image"].shape == (3, 48, 48) for inputs in batch)
    assert all(inputs["instances"].gt_masks.tensor.shape[1:] == (48, 48) for inputs in batch)
    assert all(inputs["instances"].gt_masks.tensor.flatten(1).any(1).all() for inputs in batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_follow_from_the_seed(cfg: CfgNode, small_datasets: object, workers: int) -> None:
    records = get_records("bbbc038_val")
    first = draw_samples(cfg, records, 7, (5, 0))
    cfg.DATALOADER.NUM_WORKERS = workers
    again, other = draw_samples(cfg, records, 7, (5, 0)), draw_samples(cfg, records, 7, (6, 0))
    assert first.images.shape == (7, 3, 48, 48)
    assert torch.equal(first.images, again.images) and first.files == again.files
    assert not torch.equal(first.images, other.images)
    counts = [first.files.count(file) for file in {record["file_name"] for record in records}]
    assert max(counts) - min(counts) <= 1
    assert first.cell_types == [
        {record["file_name"]: record["cell_type"] for record in records}[file] for file in first.files
    ]


def test_crop_of_a_sample_lies_in_it() -> None:
    np.random.seed(0)
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).repeat(3, 1, 1)
    firsts = {int(CropMapper(3)({"image": image, "cluster": 1})["image"][0, 0, 0]) for _ in range(400)}
    assert firsts == {8 * row + column for row in range(6) for column in range(6)}
