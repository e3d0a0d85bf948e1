"""What check_annotated asks of a data set's classes."""

from pathlib import Path

import pytest

from cupre_d2.engine.preflight import check_annotated
from cupre_d2.engine.stages import default_config
from cupre_d2.errors import ConfigError


@pytest.mark.parametrize("classes", [1, 80])
def test_semantic_watershed_has_no_roi_heads(small_datasets: Path, classes: int) -> None:
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticWatershed"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    check_annotated(cfg, ["bbbc038_val"])
    with pytest.raises(ConfigError, match="SemanticWatershed: coco_2017_val has 80 classes; expected one, cells"):
        check_annotated(cfg, ["coco_2017_val"])


def test_a_detector_has_the_classes_of_its_data(small_datasets: Path) -> None:
    cfg = default_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    check_annotated(cfg, ["coco_2017_val"])
    with pytest.raises(ConfigError, match="MODEL.ROI_HEADS.NUM_CLASSES 80: bbbc038_val has 1 classes"):
        check_annotated(cfg, ["bbbc038_val"])
