"""The records that trainers draw from."""

import logging
from typing import Any
from uuid import uuid4

import pytest
from detectron2.config import CfgNode, get_cfg

from cupre_d2.data.catalog import register_records
from cupre_d2.data.loaders import training_records, unlabeled_records
from cupre_d2.errors import DatasetError


def config(**datasets: list[dict[str, Any]]) -> CfgNode:
    """DATASETS.<KEY> is a set of these records."""
    cfg = get_cfg()
    cfg.DATASETS.UNLABELED = ()
    for key, records in datasets.items():
        name = f"loaders_{key}_{uuid4().hex}"
        register_records(name, lambda records=records: records)
        cfg.DATASETS[key] = (name,)
    return cfg


def test_pages_and_channels_are_images_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    pages = [{"file_name": "stack.tif", "page": page, "annotations": []} for page in range(165)]
    channels = [{"file_name": "a.tif", "channels": [channel]} for channel in (0, 1)]
    found = [*pages, *channels, {"file_name": "b.png"}]
    with caplog.at_level(logging.INFO):
        records = unlabeled_records(config(UNLABELED=[*found, pages[3], {"file_name": "b.png"}]))
    assert records == [{key: record[key] for key in record if key != "annotations"} for record in found]
    assert "left out 2 repeats of its 170 images" in caplog.text


def test_nothing_is_said_without_repeats(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert len(unlabeled_records(config(UNLABELED=[{"file_name": "a.png"}, {"file_name": "b.png"}]))) == 2
    assert "repeats" not in caplog.text


@pytest.mark.parametrize("filtered", [True, False])
def test_unlabeled_images_to_train_on(filtered: bool) -> None:
    cfg = config(TRAIN=[{"file_name": "a.png", "annotations": [{"iscrowd": 0}]}, {"file_name": "b.png"}])
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filtered
    with pytest.raises(DatasetError, match=r"1 of 2 images have no annotations; .*go to DATASETS\.UNLABELED"):
        training_records(cfg)
