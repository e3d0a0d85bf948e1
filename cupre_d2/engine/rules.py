"""What the values of a config must be, beyond their types, which Detectron2 checks.

Detectron2's own keys among them, as its builders answer a wrong value hours later, by an error that names no key, or not
at all.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Any

import torch
from detectron2.config import CfgNode

from cupre_d2.config import default_config, flatten
from cupre_d2.engine.phases import PRECISIONS
from cupre_d2.engine.pseudo_labels import ALGORITHMS
from cupre_d2.errors import ConfigError
from cupre_d2.evaluation.build import tasks
from cupre_d2.solver.build import CLIP_TYPES, OPTIMIZERS, check_known

SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
WARMUPS = ("linear", "constant")
CROPS = ("relative_range", "relative", "absolute", "absolute_range")
FLIPS = ("horizontal", "vertical", "none")
SAMPLINGS = ("choice", "range")
BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
POOLERS = ("ROIPool", "ROIAlign", "ROIAlignV2")


@dataclass(frozen=True)
class Rule:
    """What holds for a value, and how to say so."""

    holds: Callable[[Any], bool]
    expected: str


def _number(least: float, most: float = math.inf, open_: bool = False) -> Callable[[Any], bool]:
    """`open_`: the least itself is no such number."""

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (least < value if open_ else least <= value) and value <= most

    return holds


def _all(holds: Callable[[Any], bool], shortest: int = 1) -> Callable[[Any], bool]:
    return lambda values: len(values) >= shortest and all(map(holds, values))


def _one_of(names: Collection[str]) -> Rule:
    return Rule(lambda value: value in names, f"one of {', '.join(map(repr, names))}")


POSITIVE = Rule(_number(0, open_=True), "a number above 0")
NOT_NEGATIVE = Rule(_number(0), "a number that is not negative")
SHARE = Rule(_number(0, 1), "a number from 0 to 1")
COUNT = Rule(_number(1), "at least 1")
COUNT_OR_NONE = Rule(_number(0), "0 or more")
COUNTS = Rule(_all(_number(1)), "one or more numbers of at least 1")
THREE = Rule(lambda values: len(values) == 3 and all(map(_number(-math.inf), values)), "three numbers")
THREE_POSITIVE = Rule(lambda values: len(values) == 3 and all(map(_number(0, open_=True), values)), "three numbers above 0")
SHARES = Rule(_all(_number(0, 1)), "one or more numbers from 0 to 1")
POSITIVES = Rule(
    lambda values: bool(values) and all(_all(_number(0, open_=True))(inner) for inner in values),
    "one or more lists of numbers above 0",
)

RULES: dict[str, Rule] = {
    "AMT2.COCO_ITERS": COUNT_OR_NONE,
    "AMT2.MOCO_ITERS": COUNT_OR_NONE,
    "AMT2.ROUNDS": COUNT,
    "CLUSTERING.ALGORITHM": _one_of(ALGORITHMS),
    "CLUSTERING.CLUSTERS": COUNT,
    "CLUSTERING.COMPONENTS": COUNT,
    "CLUSTERING.CROP": COUNT,
    "CLUSTERING.NORM_POLICY": _one_of(("train", "frozen")),
    "CLUSTERING.PERIOD": COUNT_OR_NONE,
    "CLUSTERING.SAMPLES": COUNT,
    "DATALOADER.NUM_WORKERS": COUNT_OR_NONE,
    "INPUT.CELL_AUGMENTATION.PROB": SHARE,
    "INPUT.CELL_AUGMENTATION.SCALE": Rule(
        lambda values: len(values) == 2 and _all(_number(0, open_=True))(values) and values[0] <= values[1],
        "two numbers above 0, the smaller one first",
    ),
    "INPUT.CELL_AUGMENTATION.SCALE_PROB": SHARE,
    "INPUT.CELL_AUGMENTATION.SIZE": COUNT,
    "INPUT.CROP.TYPE": _one_of(CROPS),
    "INPUT.FORMAT": _one_of(("RGB", "BGR", "L")),
    "INPUT.MASK_FORMAT": _one_of(("polygon", "bitmask")),
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MIN_SIZE_TEST": COUNT_OR_NONE,
    "INPUT.MIN_SIZE_TRAIN": COUNTS,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": _one_of(SAMPLINGS),
    "INPUT.RANDOM_FLIP": _one_of(FLIPS),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": POSITIVES,
    "MODEL.ANCHOR_GENERATOR.OFFSET": Rule(lambda value: _number(0, 1)(value) and value < 1, "a number from 0, below 1"),
    "MODEL.ANCHOR_GENERATOR.SIZES": POSITIVES,
    "MODEL.BACKBONE.FREEZE_AT": Rule(_number(0, 5), "a number from 0 to 5"),
    "MODEL.DEVICE": Rule(lambda name: bool(torch.device(name)), "a device of torch, e.g. cuda or cpu"),
    "MODEL.FPN.FUSE_TYPE": _one_of(("sum", "avg")),
    "MODEL.FPN.OUT_CHANNELS": COUNT,
    "MODEL.PIXEL_MEAN": THREE,
    "MODEL.PIXEL_STD": THREE_POSITIVE,
    "MODEL.RESNETS.GN_GROUPS": COUNT,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": SHARES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _one_of(BOX_LOSSES),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": COUNT_OR_NONE,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _one_of(POOLERS),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": NOT_NEGATIVE,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": SHARES,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": SHARE,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": COUNT_OR_NONE,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _one_of(POOLERS),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _one_of(BOX_LOSSES),
    "MODEL.RPN.IOU_THRESHOLDS": SHARES,
    "MODEL.RPN.NMS_THRESH": SHARE,
    "MODEL.RPN.POSITIVE_FRACTION": SHARE,
    "MODEL.RPN.POST_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.SMOOTH_L1_BETA": NOT_NEGATIVE,
    "SOLVER.AMP.DTYPE": _one_of(tuple(PRECISIONS)),
    "SOLVER.CHECKPOINT_KEEP": COUNT,
    "SOLVER.CHECKPOINT_PERIOD": COUNT,
    "SOLVER.L2SP.ALPHA": SHARE,
    "SOLVER.L2SP.WEIGHT": NOT_NEGATIVE,
    "SOLVER.NONFINITE_LIMIT": COUNT,
    "TEST.DETECTIONS_PER_IMAGE": COUNT,
    "TEST.EVAL_PERIOD": COUNT_OR_NONE,
    "TEST.LABELS.SCORE_THRESHOLD": SHARE,
    "TEST.OVERLAYS": COUNT_OR_NONE,
    "TEST.TUNING.IMAGES": COUNT,
}

# Of SOLVER and of AMT2.MOCO_SOLVER.
SOLVER_RULES: dict[str, Rule] = {
    "ACCUMULATE": COUNT,
    "BASE_LR": POSITIVE,
    "BASE_LR_END": NOT_NEGATIVE,
    "BIAS_LR_FACTOR": NOT_NEGATIVE,
    "CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "CLIP_GRADIENTS.NORM_TYPE": POSITIVE,
    "GAMMA": POSITIVE,
    "LR_SCHEDULER_NAME": _one_of(SCHEDULERS),
    "MOMENTUM": Rule(lambda value: _number(0, 1)(value) and value < 1, "a number from 0, below 1"),
    "NUM_DECAYS": COUNT_OR_NONE,
    "STEPS": Rule(lambda steps: all(map(_number(0), steps)) and list(steps) == sorted(set(steps)), "rising numbers"),
    "WARMUP_FACTOR": SHARE,
    "WARMUP_ITERS": COUNT_OR_NONE,
    "WARMUP_METHOD": _one_of(WARMUPS),
    "WEIGHT_DECAY": NOT_NEGATIVE,
    "WEIGHT_DECAY_NORM": NOT_NEGATIVE,
}

# Keys of Detectron2's that nothing reads here, neither its parts nor ours: they would pass without a word.
UNREAD = (
    "DATALOADER.REPEAT_SQRT",
    "DATALOADER.REPEAT_THRESHOLD",
    "DATALOADER.SAMPLER_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "GLOBAL.HACK",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "TEST.AUG.ENABLED",
    "TEST.EXPECTED_RESULTS",
    "TEST.KEYPOINT_OKS_SIGMAS",
)


def check_values(cfg: CfgNode) -> None:
    """Raises ConfigError for the first value, by name, that no training can mean."""
    values, defaults = flatten(cfg), flatten(default_config())
    for key, default in defaults.items():
        # Detectron2 takes None for a value of any type.
        if values[key] is None and default is not None:
            raise ConfigError(f"{key} None: expected a value as {default!r}")
    for key in UNREAD:
        _check(key, values[key], Rule(partial(eq, defaults[key]), f"{defaults[key]!r}, as nothing here reads it"))
    for key, rule in RULES.items():
        _check(key, values[key], rule)
    if cfg.INPUT.CROP.ENABLED:
        most = 1.0 if cfg.INPUT.CROP.TYPE.startswith("relative") else math.inf
        size = Rule(lambda values: len(values) == 2 and all(map(_number(0, most, open_=True), values)), "two sizes above 0")
        _check("INPUT.CROP.SIZE", cfg.INPUT.CROP.SIZE, size)


def check_best(cfg: CfgNode) -> None:
    """Raises ConfigError for a TEST.BEST that no evaluation while training can answer."""
    if not cfg.TEST.EVAL_PERIOD or not cfg.DATASETS.TEST:
        return
    best, known = cfg.TEST.BEST, tasks(cfg)
    if best.DATASET and best.DATASET not in cfg.DATASETS.TEST:
        raise ConfigError(f"TEST.BEST.DATASET {best.DATASET}: expected one of DATASETS.TEST, {', '.join(cfg.DATASETS.TEST)}")
    if best.TASK not in known:
        measured = f"one that TEST.EVALUATORS measure, {', '.join(known)}"
        raise ConfigError(f"TEST.BEST.TASK {best.TASK}: expected {measured}, as TEST.EVAL_PERIOD asks for the best")


def check_solver(solver: CfgNode, key: str, processes: int) -> None:
    """Of SOLVER or AMT2.MOCO_SOLVER, which `key` names; raises ConfigError as `check_values`."""
    values = flatten(solver)
    for name, rule in SOLVER_RULES.items():
        _check(f"{key}.{name}", values[name], rule)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        raise ConfigError(f"{key}.BASE_LR_END {solver.BASE_LR_END}: expected at most {key}.BASE_LR ({solver.BASE_LR})")
    check_known(f"{key}.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    if solver.CLIP_GRADIENTS.ENABLED:
        check_known(f"{key}.CLIP_GRADIENTS.CLIP_TYPE", solver.CLIP_GRADIENTS.CLIP_TYPE, CLIP_TYPES)
    batch = solver.IMS_PER_BATCH
    if batch is None or batch < 1 or batch % processes:
        raise ConfigError(f"{key}.IMS_PER_BATCH {batch}: expected a positive multiple of the processes ({processes})")
    if batch // processes < solver.ACCUMULATE:
        raise ConfigError(
            f"{key}.ACCUMULATE {solver.ACCUMULATE}: expected at most the images a process has ({batch // processes})"
        )
    if "MAX_ITER" in solver:
        _check(f"{key}.MAX_ITER", solver.MAX_ITER, COUNT)


def _check(key: str, value: Any, rule: Rule) -> None:
    try:
        holds = rule.holds(value)
    # The latter is torch's, of a device.
    except (TypeError, RuntimeError):
        holds = False
    if not holds:
        raise ConfigError(f"{key} {value!r}: expected {rule.expected}")
