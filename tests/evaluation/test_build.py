import math
from collections.abc import Iterator

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import DatasetEvaluator

from cupre_d2 import add_cupre_config
from cupre_d2.engine.results import table
from cupre_d2.errors import ConfigError
from cupre_d2.evaluation import build
from cupre_d2.evaluation.build import as_text, build_evaluators, register_evaluator, tasks
from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
from cupre_d2.evaluation.label_evaluator import LabelEvaluator


class Counting(DatasetEvaluator):
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture()
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An evaluator of a project's own, in a copy of the registry."""
    monkeypatch.setattr(build, "_EVALUATORS", dict(build._EVALUATORS))

    @register_evaluator("counting", units={"count": "cells"})
    def make(cfg: CfgNode, name: str) -> DatasetEvaluator:
        return Counting(name)

    yield


def config(*names: str) -> CfgNode:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.TEST.EVALUATORS = names
    return cfg


def test_configs_name_evaluators() -> None:
    default = get_cfg()
    add_cupre_config(default)
    assert [type(one) for one in build_evaluators(default, "any")] == [CellCOCOEvaluator]
    both = build_evaluators(config("labels", "cell_coco", "labels"), "any")
    assert [type(one) for one in both] == [LabelEvaluator, CellCOCOEvaluator]
    with pytest.raises(ConfigError, match=r"TEST.EVALUATORS coco: no such evaluator; did you mean cell_coco\?"):
        build_evaluators(config("labels", "coco"), "any")
    with pytest.raises(ConfigError, match=r"TEST.EVALUATORS \(\): expected one or more of cell_coco, labels"):
        build_evaluators(config(), "any")


def test_projects_register_their_own(counting: None) -> None:
    cfg = config("counting", "cell_coco")
    own, _ = build_evaluators(cfg, "my_cells")
    assert isinstance(own, Counting) and own.name == "my_cells"
    assert tasks(cfg) == {"count": "cells", "bbox": "%", "segm": "%"}
    with pytest.raises(ConfigError, match="'counting': registered already"):
        register_evaluator("counting", units={})(Counting)
    with pytest.raises(ConfigError, match="task 'count' in '%'; others measure it in 'cells'"):
        register_evaluator("other", units={"count": "%"})(Counting)


def test_numbers_as_text() -> None:
    assert [as_text(value, "%") for value in (12.345, 100.0, math.nan, None)] == ["12.3", "100.0", "-", "-"]
    assert [as_text(value, "cells") for value in (3.14159, 12345.6, 0, math.nan, None)] == [
        "3.142",
        "1.235e+04",
        "0",
        "-",
        "-",
    ]


def test_each_task_in_its_table(counting: None) -> None:
    """Those of boxes and masks in percent, as ever; others with all their metrics, and the unit."""
    counted = {"MAE": 2.34567, "bias": None}
    text = table({"a": {"count": counted, "bbox": {"AP": 45.678, "APs": math.nan}, "segm": {"AP": 40, "AR2000": 50}}})
    coco, count = text.split("\n\n")
    headers, _, boxes, masks = (line.split() for line in coco.splitlines())
    assert headers == ["data", "set", "task", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR500", "AR2000"]
    assert boxes == ["a", "bbox", "45.7", *"--------"] and masks == ["a", "segm", "40.0", *"-------", "50.0"]
    headers, _, numbers = (line.split() for line in count.splitlines())
    assert headers == ["data", "set", "task", "MAE", "(cells)", "bias", "(cells)"] and numbers == [
        "a",
        "count",
        "2.346",
        "-",
    ]
