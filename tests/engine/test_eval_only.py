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
