from pathlib import Path

import pytest

from cupre_d2.engine import pipeline
from cupre_d2.engine.eval_only import prepare_evaluation
from cupre_d2.errors import ConfigError


def test_moco_detects_nothing(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    """Neither after its training nor in an evaluation alone."""
    weights = tmp_path / "any.pth"
    weights.touch()
    config = "configs/mini/stages/moco.yaml"
    opts = [*slim, "PIPELINE.TARGET", "bbbc038", "OUTPUT_DIR", str(tmp_path / "out"), "DATASETS.TEST", "('bbbc038_val',)"]
    message = r"DATASETS.TEST bbbc038_val: MoCo detects nothing; expected \(\)"
    with pytest.raises(ConfigError, match=message):
        prepare_evaluation(config, [*opts, "MODEL.WEIGHTS", str(weights)])
    with pytest.raises(ConfigError, match=message):
        pipeline.prepare(config, opts)


def test_weights_of_the_stage_go_before_those_of_all(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    for name in ("all.pth", "own.pth"):
        (tmp_path / name).touch()
    opts = [*slim, "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", str(tmp_path / "all.pth")]
    config = "configs/mini/scratch_bbbc038_5pct.yaml"
    assert prepare_evaluation(config, opts).weights == str(tmp_path / "all.pth")
    own = ["finetune.MODEL.WEIGHTS", str(tmp_path / "own.pth")]
    assert prepare_evaluation(config, [*opts, *own]).weights == str(tmp_path / "own.pth")
