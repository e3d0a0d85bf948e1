"""Checks that run before the first stage trains, so that bad input does not end a run hours later."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from cupre_d2.data.catalog import check_images
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.images import check_percentiles
from cupre_d2.errors import ConfigError
from cupre_d2.solver.build import CLIP_TYPES, OPTIMIZERS, check_known


def check_solver(solver: CfgNode, key: str) -> None:
    """Raises ConfigError for an optimizer, or numbers of iterations or images, that cannot be trained with."""
    check_known(f"{key}.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    if "CLIP_GRADIENTS" in solver and solver.CLIP_GRADIENTS.ENABLED:
        check_known(f"{key}.CLIP_GRADIENTS.CLIP_TYPE", solver.CLIP_GRADIENTS.CLIP_TYPE, CLIP_TYPES)
    processes = comm.get_world_size()
    if solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % processes:
        raise ConfigError(
            f"{key}.IMS_PER_BATCH {solver.IMS_PER_BATCH}: expected a positive multiple of the processes ({processes})"
        )
    if solver.get("MAX_ITER", 1) < 1:
        raise ConfigError(f"{key}.MAX_ITER {solver.MAX_ITER}: expected at least 1")
    if not solver.BASE_LR > 0:
        raise ConfigError(f"{key}.BASE_LR {solver.BASE_LR}: expected a positive number")


def check_annotated(cfg: CfgNode, names: Sequence[str]) -> None:
    """Reads the annotated data sets: they exist, their images open, their classes and masks fit the config.

    Raises:
        DatasetError: a data set, record or image that cannot be used.
        ConfigError: MODEL.ROI_HEADS.NUM_CLASSES or INPUT.MASK_FORMAT that does not fit the data set, or an
            INPUT.PERCENTILES that is none.
    """
    check_percentiles(cfg.INPUT.PERCENTILES)
    for name in names:
        records = get_records(name)
        check_images(records, name)
        classes = MetadataCatalog.get(name).get("thing_classes", ())
        if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ConfigError(
                f"MODEL.ROI_HEADS.NUM_CLASSES {cfg.MODEL.ROI_HEADS.NUM_CLASSES}: {name} has {len(classes)} classes"
            )
        if cfg.INPUT.MASK_FORMAT == "polygon" and name in cfg.DATASETS.TRAIN:
            for record in records:
                if any(_is_mask(annotation) for annotation in record.get("annotations", ())):
                    raise ConfigError(
                        f"INPUT.MASK_FORMAT polygon: {name}, image {record['image_id']} has masks as RLE; "
                        "expected INPUT.MASK_FORMAT bitmask"
                    )


def _is_mask(annotation: dict) -> bool:
    return isinstance(annotation.get("segmentation"), dict) and not annotation.get("iscrowd", 0)


def check_unlabeled(cfg: CfgNode) -> None:
    """Reads the unlabeled data sets: they exist and their images open; raises DatasetError otherwise."""
    check_percentiles(cfg.INPUT.PERCENTILES)
    if not cfg.DATASETS.UNLABELED:
        raise ConfigError(f"DATASETS.UNLABELED: empty; {cfg.TRAINER} needs unlabeled images, e.g. ('cells_unlabeled',)")
    for name in cfg.DATASETS.UNLABELED:
        check_images(get_records(name), name)
