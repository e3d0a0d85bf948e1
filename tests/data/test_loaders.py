"""The records that trainers draw from, and the endless stream of them: it follows from seed and iteration alone."""

import logging
import random
from itertools import islice
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from cupre_d2.data.catalog import register_records
from cupre_d2.data.loaders import Draw, EndlessBatches, SeededDataset, aspect_groups, training_records, unlabeled_records
from cupre_d2.errors import ConfigError, DatasetError


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


GROUPS = [0, 1, 0, 0, 1, 0, 0]


def first(count: int, *args: Any, **options: Any) -> list[list[Draw]]:
    return list(islice(EndlessBatches(*args, **options), count))


def test_passes_follow_each_other_without_a_break() -> None:
    draws = sum(first(7, [0] * 6, 4, (3,)), [])
    assert [draw.position for draw in draws] == list(range(28))
    passes = [[draw.index for draw in draws[start : start + 6]] for start in (0, 6, 12, 18)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_groups_are_batched_apart_and_nothing_is_left_out() -> None:
    batches = first(200, GROUPS, 2, (3,))
    assert all(len({GROUPS[draw.index] for draw in batch}) == 1 for batch in batches)
    counts = np.bincount([draw.index for batch in batches for draw in batch])
    assert len(counts) == len(GROUPS) and counts.max() - counts.min() <= 2


@pytest.mark.parametrize("start", [1, 5, 23])
def test_a_later_start_leaves_out_the_first_batches(start: int) -> None:
    assert first(10, GROUPS, 2, (3,), start) == first(10 + start, GROUPS, 2, (3,))[start:]


def test_the_seed_decides() -> None:
    assert first(5, GROUPS, 2, (3, 1)) == first(5, GROUPS, 2, (3, 1)) != first(5, GROUPS, 2, (3, 2))


def test_processes_share_each_batch() -> None:
    whole = first(9, GROUPS, 4, (3,))
    parts = [first(9, GROUPS, 4, (3,), rank=rank, processes=2) for rank in range(2)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(("size", "processes"), [(3, 2), (1, 2), (0, 1)])
def test_batches_that_cannot_be_shared(size: int, processes: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"SOLVER.IMS_PER_BATCH {size}: expected a multiple of the processes \({processes}\)"
    ):
        EndlessBatches(GROUPS, size, (3,), processes=processes)


def test_wide_and_other_images() -> None:
    records = [{"width": 3, "height": 2}, {"width": 2, "height": 2}, {"width": 2, "height": 3}]
    assert aspect_groups(records) == [0, 1, 1]


def numbers(record: dict[str, int]) -> dict[str, Any]:
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def test_a_mappers_random_numbers_follow_from_the_position_and_disturb_no_others() -> None:
    records = [{"id": 0}, {"id": 1}]
    dataset = SeededDataset(records, numbers, (3,))
    torch.manual_seed(0)
    alone = torch.rand(2)
    torch.manual_seed(0)
    before = torch.rand(1)
    one, again, later = dataset[Draw(5, 1)], dataset[Draw(5, 1)], dataset[Draw(6, 1)]
    assert torch.equal(torch.cat([before, torch.rand(1)]), alone)
    assert one == again and one["id"] == 1
    assert not set(one["drawn"]) & set(later["drawn"])
    assert SeededDataset(records, numbers, (4,))[Draw(5, 1)]["drawn"] != one["drawn"]
