"""Values that no training can mean, and settings that nothing would read."""

import re
from typing import Any

import pytest

from cupre_d2.config import default_config
from cupre_d2.engine.rules import UNREAD, check_best, check_solver, check_values
from cupre_d2.errors import ConfigError

OTHERS: dict[str, Any] = {
    "DATALOADER.REPEAT_SQRT": False,
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATASETS.PROPOSAL_FILES_TEST": ("proposals.pkl",),
    "DATASETS.PROPOSAL_FILES_TRAIN": ("proposals.pkl",),
    "GLOBAL.HACK": 2.0,
    "SOLVER.REFERENCE_WORLD_SIZE": 8,
    "TEST.AUG.ENABLED": True,
    "TEST.EXPECTED_RESULTS": [["bbox", "AP", 38.5, 0.2]],
    "TEST.KEYPOINT_OKS_SIGMAS": [0.1],
}


@pytest.mark.parametrize("key", UNREAD)
def test_settings_that_nothing_reads_are_refused(key: str) -> None:
    cfg = default_config()
    check_values(cfg)
    cfg.merge_from_list([key, OTHERS[key]])
    expected = re.escape(f"{key} {OTHERS[key]!r}: expected ") + ".*, as nothing here reads it"
    with pytest.raises(ConfigError, match=expected):
        check_values(cfg)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("BASE_LR_END", 1.0, r"BASE_LR_END 1.0: expected at most AMT2.MOCO_SOLVER.BASE_LR \(0.03\)"),
        ("STEPS", (5, 3), r"STEPS \(5, 3\): expected rising numbers"),
        ("WARMUP_METHOD", "exp", "WARMUP_METHOD 'exp': expected one of"),
        ("CLIP_GRADIENTS.CLIP_VALUE", 0.0, "CLIP_GRADIENTS.CLIP_VALUE 0.0: expected a number above 0"),
    ],
)
def test_the_moco_phases_solver_has_the_rules_of_solver(key: str, value: Any, expected: str) -> None:
    cfg = default_config()
    cfg.merge_from_list([f"AMT2.MOCO_SOLVER.{key}", value])
    with pytest.raises(ConfigError, match=f"AMT2.MOCO_SOLVER.{expected}"):
        check_solver(cfg.AMT2.MOCO_SOLVER, "AMT2.MOCO_SOLVER", 1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["TEST.BEST.DATASET", "three"], "TEST.BEST.DATASET three: expected one of DATASETS.TEST, one, two"),
        (["TEST.EVALUATORS", ("labels",)], "TEST.BEST.TASK segm: expected one that TEST.EVALUATORS measure, labels"),
    ],
)
def test_what_is_best_is_measured(more: list[Any], expected: str) -> None:
    cfg = default_config()
    cfg.merge_from_list(["DATASETS.TEST", ("one", "two"), *more])
    check_best(cfg)
    cfg.TEST.EVAL_PERIOD = 5
    with pytest.raises(ConfigError, match=expected):
        check_best(cfg)
    cfg.DATASETS.TEST = ()
    check_best(cfg)
