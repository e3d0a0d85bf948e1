from pathlib import Path

import pytest
from torch import nn

from cupre_d2.config import default_config
from cupre_d2.engine import pipeline, stage_trainer
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


def test_overlays_show_images_as_the_model_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = default_config()
    cfg.DATASETS.TEST, cfg.INPUT.PERCENTILES = ("cells",), (1, 90)
    given = []
    monkeypatch.setattr(stage_trainer, "OverlayWriter", lambda *arguments: given.append(arguments))
    for name in ("build_test_loader", "inference_on_dataset"):
        monkeypatch.setattr(stage_trainer, name, lambda *_: {})
    stage_trainer.test(cfg, nn.Identity())
    assert given == [("cells", 4, cfg.OUTPUT_DIR, (1, 90))]
