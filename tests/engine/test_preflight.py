"""What is checked before anything trains: a data set's classes, what several processes share."""

import logging
import re
from pathlib import Path

import pytest
import torch

from cupre_d2.config import default_config
from cupre_d2.data import get_records, register_cell_dataset
from cupre_d2.engine.distributed import launch
from cupre_d2.engine.preflight import check_annotated, check_detection, check_processes, say_what_does_not_fit
from cupre_d2.engine.stages import Stage
from cupre_d2.errors import ConfigError, DatasetError
from tests.conftest import write_coco


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


def test_classes_in_another_order(tmp_path: Path) -> None:
    """A model knows them by number alone."""
    for name, classes in (("ordered_one", ["live", "dead"]), ("ordered_other", ["dead", "live"])):
        write_coco(tmp_path / name, tmp_path / f"{name}.json", ["a.png"], dict(enumerate(classes, start=1)))
        register_cell_dataset(name, tmp_path / name, tmp_path / f"{name}.json")
    cfg = default_config()
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATASETS.TRAIN", ("ordered_one",), "MODEL.MASK_ON", True])
    cfg.DATASETS.TEST = ("ordered_one",)
    check_detection(cfg)
    cfg.DATASETS.TEST = ("ordered_other",)
    with pytest.raises(DatasetError, match="'ordered_other': classes .'dead', 'live'.; expected .'live', 'dead'."):
        check_detection(cfg)


@pytest.mark.parametrize(
    ("opts", "gpu", "message"),
    [
        (["SOLVER.IMS_PER_BATCH", 3], False, "SOLVER.IMS_PER_BATCH 3: expected a positive multiple of the processes (2)"),
        (["AMT2.MOCO_SOLVER.IMS_PER_BATCH", 5], False, "AMT2.MOCO_SOLVER.IMS_PER_BATCH 5: expected a positive multiple"),
        (["SOLVER.ACCUMULATE", 3], False, "SOLVER.ACCUMULATE 3: expected at most the images a process has (2)"),
        (["MODEL.DEVICE", "cuda:0"], True, "MODEL.DEVICE cuda:0: 2 processes; expected cuda, or no GPU visible"),
        (["MODEL.DEVICE", "cpu"], True, "MODEL.DEVICE cpu: 2 processes; expected cuda, or no GPU visible"),
    ],
)
def test_what_two_processes_cannot_share(
    opts: list[object], gpu: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    cfg = default_config()
    cfg.merge_from_list(["TRAINER", "AlternatingTrainer", "SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cuda"])
    check_processes([Stage("amt2", cfg)], 2)
    cfg.merge_from_list(opts)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_processes([Stage("amt2", cfg)], 2)


def test_several_machines_need_an_address() -> None:
    with pytest.raises(ConfigError, match="--dist-url: missing; several machines need that of the first"):
        launch(print, 1, 2, 0, None, ())


def fits(caplog: pytest.LogCaptureFixture, *opts: object) -> str:
    """What is said of cells of 10 to 20 pixels, 6 an image."""
    cfg = default_config()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "INPUT.MIN_SIZE_TEST", 0, *opts])
    caplog.clear()
    say_what_does_not_fit(cfg, f"cells{len(opts)}{opts}", get_records("bbbc038_val"))
    return caplog.text


def test_limits_and_anchors_that_do_not_fit(
    small_datasets: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cupre_d2"), "propagate", True)
    small = "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32]]
    assert fits(caplog, *small) == ""
    said = fits(caplog, *small, "TEST.DETECTIONS_PER_IMAGE", 4)
    assert "up to 6 cells an image, but TEST.DETECTIONS_PER_IMAGE 4" in said
    assert "MODEL.RPN.POST_NMS_TOPK_TEST 5" in fits(caplog, *small, "MODEL.RPN.POST_NMS_TOPK_TEST", 5)
    said = fits(caplog, "MODEL.ANCHOR_GENERATOR.SIZES", [[64], [128]])
    assert "100 % of its cells, of 11 to 21 pixels" in said and "more than 2 times smaller or larger than any anchor" in said
    # Enlarged to eight times their size they fit.
    assert fits(caplog, "MODEL.ANCHOR_GENERATOR.SIZES", [[64], [128]], "INPUT.MIN_SIZE_TEST", 768) == ""
