"""Checks that run before the first stage trains, so that bad input does not end a run hours later."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import nn

from cupre_d2.data.catalog import Record, check_images, check_same_classes
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.images import check_percentiles
from cupre_d2.data.mappers import TwoViewMapper
from cupre_d2.engine.rules import check_best, check_solver, check_values
from cupre_d2.engine.stages import Stage
from cupre_d2.errors import ConfigError, CupreError
from cupre_d2.evaluation.build import build_evaluators, tasks

# Of the anchors and the cells that are measured; and of them the share that may be without an anchor.
FITTING, MOST_MEASURED, MISFITS = 2, 500, 0.1
# Of evaluators that compare masks.
TASKS_OF_CELLS = frozenset(("bbox", "segm", "labels"))


def check_settings(cfg: CfgNode) -> None:
    """Raises ConfigError for values that no training can mean, or that no network is built with."""
    check_values(cfg)
    check_solver(cfg.SOLVER, "SOLVER", comm.get_world_size())
    check_network(cfg)


def check_processes(stages: Sequence[Stage], processes: int) -> None:
    """Raises ConfigError for batches that so many processes cannot share, or a device that they cannot work on."""
    for cfg in (stage.cfg for stage in stages):
        check_solver(cfg.SOLVER, "SOLVER", processes)
        if cfg.TRAINER == "AlternatingTrainer" and cfg.AMT2.MOCO:
            check_solver(cfg.AMT2.MOCO_SOLVER, "AMT2.MOCO_SOLVER", processes)
        device = cfg.MODEL.DEVICE
        if processes > 1 and (":" in device or (device == "cpu" and torch.cuda.is_available())):
            expected = "cuda, or no GPU visible (CUDA_VISIBLE_DEVICES= )"
            raise ConfigError(f"MODEL.DEVICE {device}: {processes} processes; expected {expected}")


def check_network(cfg: CfgNode) -> nn.Module:
    """The stage's network, without memory for its weights; raises ConfigError for settings that none is built with."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            return build_model(cfg)
    except CupreError:
        raise
    except Exception as error:  # Detectron2's builders answer wrong settings with errors of any kind.
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"MODEL: no network can be built ({type(error).__name__}: {reason})") from error


def check_annotated(cfg: CfgNode, names: Sequence[str]) -> None:
    """Reads the annotated data sets: they exist, their images open, their classes and masks fit the config.

    Raises:
        DatasetError: a data set, record or image that cannot be used.
        ConfigError: MODEL.ROI_HEADS.NUM_CLASSES or INPUT.MASK_FORMAT that does not fit the data set, several classes where
            SemanticWatershed tells none apart, or an INPUT.PERCENTILES that is none.
    """
    check_percentiles(cfg.INPUT.PERCENTILES)
    for name in names:
        records = get_records(name)
        check_images(records, name)
        say_what_does_not_fit(cfg, name, records)
        classes = MetadataCatalog.get(name).get("thing_classes", ())
        if cfg.MODEL.META_ARCHITECTURE == "SemanticWatershed":
            if len(classes) != 1:
                raise ConfigError(
                    f"MODEL.META_ARCHITECTURE SemanticWatershed: {name} has {len(classes)} classes; expected one, cells"
                )
        elif len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ConfigError(
                f"MODEL.ROI_HEADS.NUM_CLASSES {cfg.MODEL.ROI_HEADS.NUM_CLASSES}: {name} has {len(classes)} classes"
            )
        if cfg.INPUT.MASK_FORMAT == "polygon" and name in cfg.DATASETS.TRAIN:
            for record in records:
                cells = [one.get("segmentation") for one in record.get("annotations", ()) if not one.get("iscrowd", 0)]
                if any(isinstance(mask, dict) for mask in cells):
                    raise ConfigError(
                        f"INPUT.MASK_FORMAT polygon: {name}, image {record['image_id']} has masks as RLE; "
                        "expected INPUT.MASK_FORMAT bitmask"
                    )


def say_what_does_not_fit(cfg: CfgNode, name: str, records: Sequence[Record]) -> None:
    """Warns, once, of a detector's limits and anchors that the cells of a data set do not fit.

    Sizes of cells are the roots of their boxes' areas, in pixels of the network's input in evaluation, of at most
    MOST_MEASURED images; an anchor fits those within a factor of FITTING, beyond which the IoU of two squares is below 1/4.
    """
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return
    most = max((len(record.get("annotations", ())) for record in records), default=0)
    limits = {
        "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE,
        "MODEL.RPN.POST_NMS_TOPK_TEST": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
    }
    for key, limit in limits.items():
        if limit < most:
            _warn_once(f"{name}: up to {most} cells an image, but {key} {limit}: the others can't be found; expected more")
    sizes = np.array([size for record in records[:: len(records) // MOST_MEASURED + 1] for size in _sizes(cfg, record)])
    anchors = np.unique([size for sizes_of_level in cfg.MODEL.ANCHOR_GENERATOR.SIZES for size in sizes_of_level])
    factors = np.exp(np.abs(np.log(np.maximum(sizes, 0.1)[:, None] / anchors)).min(axis=1))
    misfits = sizes[factors > FITTING]
    if len(misfits) > MISFITS * len(sizes):
        _warn_once(
            f"{name}: {100 * len(misfits) / len(sizes):.0f} % of its cells, of {misfits.min():.0f} to {misfits.max():.0f} "
            f"pixels at the network's input, are more than {FITTING} times smaller or larger than any anchor "
            f"(MODEL.ANCHOR_GENERATOR.SIZES {anchors[0]:g} to {anchors[-1]:g}); expected SIZES near theirs, or another "
            "INPUT.MIN_SIZE_TEST"
        )


def _sizes(cfg: CfgNode, record: Record) -> list[float]:
    """Of the cells of an image, as `ResizeShortestEdge` leaves them."""
    short, long = sorted((record["height"], record["width"]))
    scale = min(cfg.INPUT.MIN_SIZE_TEST / short, cfg.INPUT.MAX_SIZE_TEST / long) if cfg.INPUT.MIN_SIZE_TEST else 1.0
    boxes = [
        BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
        for annotation in record.get("annotations", ())
    ]
    return [scale * math.sqrt(max(width * height, 0)) for _, _, width, height in boxes]


def _warn_once(message: str) -> None:
    # A data set is checked for every stage that names it.
    log_first_n(logging.WARNING, message, key="message", name=__name__)


def check_detection(cfg: CfgNode) -> None:
    """Checks what learning from DATASETS.TRAIN and being tested on DATASETS.TEST needs; errors as `check_tests`."""
    check_annotated(cfg, cfg.DATASETS.TRAIN)
    check_tests(cfg)
    check_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def check_tests(cfg: CfgNode) -> None:
    """Checks what evaluations on DATASETS.TEST need: of boxes and masks, annotations that fit the network; of a project's
    own tasks, that the images open.

    Raises:
        CupreError: as `check_annotated`, settings of TEST that no evaluator can be built with, or a network without masks.
    """
    if not cfg.DATASETS.TEST:
        return
    if cfg.MODEL.META_ARCHITECTURE == "MoCo":
        raise ConfigError(f"DATASETS.TEST {', '.join(cfg.DATASETS.TEST)}: MoCo detects nothing; expected ()")
    cells = not TASKS_OF_CELLS.isdisjoint(tasks(cfg))
    if cells:
        check_annotated(cfg, cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TEST:
        if not cells:
            check_images(get_records(name), name)
        build_evaluators(cfg, name)
    check_best(cfg)
    if cells and cfg.MODEL.META_ARCHITECTURE != "SemanticWatershed" and not cfg.MODEL.MASK_ON:
        raise ConfigError("MODEL.MASK_ON False: cells are evaluated by their masks; expected True, or DATASETS.TEST ()")


def check_unlabeled(cfg: CfgNode) -> None:
    """Reads the unlabeled data sets: they exist and their images open.

    Raises:
        DatasetError: a data set or image that cannot be used.
        ConfigError: there is none, or settings of INPUT.VIEWS or INPUT.PERCENTILES that cannot be.
    """
    check_percentiles(cfg.INPUT.PERCENTILES)
    if not cfg.DATASETS.UNLABELED:
        raise ConfigError(f"DATASETS.UNLABELED: empty; {cfg.TRAINER} needs unlabeled images, e.g. ('cells_unlabeled',)")
    TwoViewMapper(cfg)
    for name in cfg.DATASETS.UNLABELED:
        check_images(get_records(name), name)
