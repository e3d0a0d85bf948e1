"""Few-shot names: nested, seeded, stratified, the same everywhere."""

import logging
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from uuid import uuid4

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from cupre_d2.data.catalog import register_records
from cupre_d2.data.few_shot import ensure_registered, get_records, subset
from cupre_d2.errors import DatasetError

SIZES = {"a172": 57, "huh7": 31, "mcf7": 12}

# Written down once, from `sorted(ids, key=sha256)`: published results depend on them.
EXPECTED_SEED0 = ["image5", "image8", "image9", "image16", "image17"]
EXPECTED_SEED3 = ["image3", "image9", "image10", "image13", "image15"]
EXPECTED_TYPED = ["a172_9", "a172_24", "a172_51", "huh7_29", "mcf7_8"]


def plain(count: int) -> list[dict[str, Any]]:
    return [{"image_id": f"image{index}"} for index in range(count)]


def typed() -> list[dict[str, Any]]:
    return [{"image_id": f"{t}_{i}", "cell_type": t} for t, size in SIZES.items() for i in range(size)]


def labeled() -> list[dict[str, Any]]:
    """270 rosettes in 1,100, as in the published set, at a tenth."""
    return [{"image_id": f"image{i}", "label": int(i >= 27)} for i in range(110)]


def counted() -> list[dict[str, Any]]:
    """Many images of few cells, few of many, ten without a count."""
    counts = [1] * 40 + [2] * 15 + [3, 4, 5, 6, 7] * 4 + [30] * 25
    return [{"image_id": f"image{i}", "count": count} for i, count in enumerate(counts)] + plain(110)[100:]


def ids(records: list[dict[str, Any]]) -> list[str]:
    return [record["image_id"] for record in records]


@pytest.fixture()
def name() -> str:
    name = f"made_{uuid4().hex}"
    register_records(name, typed, classes=("cell",), json_file="whole_set.json")
    return name


def test_the_draw_never_changes() -> None:
    assert ids(subset(plain(20), 25, seed=0)) == EXPECTED_SEED0
    assert ids(subset(plain(20), 25, seed=3)) == EXPECTED_SEED3
    assert ids(subset(typed(), 5, seed=0)) == EXPECTED_TYPED


def test_the_draw_does_not_depend_on_the_order_of_records() -> None:
    assert set(ids(subset(typed()[::-1], 20, 0))) == set(ids(subset(typed(), 20, 0)))


@pytest.mark.parametrize("records", [plain(37), typed(), labeled(), counted()], ids=["plain", "typed", "labeled", "counted"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_nested_and_sized(records: list[dict[str, Any]], seed: int) -> None:
    smaller: set[str] = set()
    for percent in (Fraction("0.5"), 1, Fraction("2.5"), 5, 10, 15, 20, 50, 99, 100):
        chosen = ids(subset(records, percent, seed))
        assert len(chosen) == len(set(chosen)) == max(1, round(percent * len(records) / 100))
        assert chosen == [i for i in ids(records) if i in set(chosen)]
        assert smaller <= set(chosen)
        smaller = set(chosen)
    assert smaller == set(ids(records))


def test_seeds_differ() -> None:
    draws = {tuple(ids(subset(plain(100), 10, seed))) for seed in range(10)}
    assert len(draws) == 10


def test_every_image_is_drawn_about_as_often() -> None:
    counts = Counter(i for seed in range(400) for i in ids(subset(typed(), 20, seed)))
    assert len(counts) == 100
    # 80 expected, binomial with standard deviation 8.
    assert all(abs(count - 80) < 40 for count in counts.values())


def shares(records: list[dict[str, Any]], percent: int, stratum: Callable[[dict[str, Any]], Any]) -> None:
    """Each stratum has its share in any draw, to within an image."""
    whole = Counter(map(stratum, records))
    assert len(whole) > 1
    for seed in range(20):
        drawn = Counter(map(stratum, subset(records, percent, seed)))
        for name, size in whole.items():
            assert math.floor(size * percent / 100) - 1 <= drawn[name] <= math.ceil(size * percent / 100) + 1


@pytest.mark.parametrize("percent", [5, 10, 20, 33, 50])
def test_types_classes_and_counts_have_their_share(percent: int) -> None:
    shares(typed(), percent, lambda record: record["cell_type"])
    shares(labeled(), percent, lambda record: record["label"])
    # The ranges that five of twenty images each, and ties kept together, make of these counts.
    shares(counted(), percent, lambda record: "count" in record and sum(record["count"] >= start for start in (2, 4, 30)))


def test_a_cell_type_goes_before_a_label_and_a_count() -> None:
    for field in ("label", "count"):
        others = [{**record, field: index % 7} for index, record in enumerate(typed())]
        assert ids(subset(others, 5, seed=0)) == EXPECTED_TYPED


def test_five_percent_of_a_hundred_have_a_count_of_each_range() -> None:
    records = [{"image_id": index, "count": index} for index in range(100)]
    for seed in range(20):
        assert sorted(record["count"] // 20 for record in subset(records, 5, seed)) == [0, 1, 2, 3, 4]


def test_names(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        five = get_records(f"{name}_5pct")
    assert f"{name}_5pct: 5 of the 100 images of {name}" in caplog.text
    assert five == subset(typed(), 5, 0) == get_records(f"{name}_5pct_seed0") == get_records(f"{name}_5.0pct")
    assert get_records(f"{name}_20pct_seed3") == subset(typed(), 20, 3)
    assert len(get_records(f"{name}_2.5pct")) == 2
    assert get_records(f"{name}_100pct_seed9") == typed()
    assert ids(get_records(f"{name}_50pct_10pct")) == ids(subset(subset(typed(), 50, 0), 10, 0))


def test_registered_with_detectron2(name: str) -> None:
    ensure_registered(f"{name}_5pct")
    ensure_registered(f"{name}_5pct")
    assert DatasetCatalog.get(f"{name}_5pct") == subset(typed(), 5, 0)
    metadata = MetadataCatalog.get(f"{name}_5pct")
    assert metadata.name == f"{name}_5pct"
    assert metadata.thing_classes == ["cell"] and metadata.evaluator_type == "cell_coco"
    assert metadata.get("json_file") is None


@pytest.mark.parametrize("percent", ["0", "0.0", "100.5", "250", "-5"])
def test_percent_out_of_range(name: str, percent: str) -> None:
    with pytest.raises(DatasetError, match=rf"{name}_{percent}pct.*more than 0 and at most 100"):
        ensure_registered(f"{name}_{percent}pct")
    assert f"{name}_{percent}pct" not in DatasetCatalog


@pytest.mark.parametrize(
    ("wrong", "offered"),
    [
        ("livecel_train", "livecell_train"),
        ("LIVECell_val", "livecell_val"),
        ("bbbc38_train_5pct_seed3", "bbbc038_train_5pct_seed3"),
        ("coco2017_train_10pct", "coco_2017_train_10pct"),
    ],
)
def test_unknown_names_offer_the_closest(wrong: str, offered: str) -> None:
    for call in (ensure_registered, get_records):
        with pytest.raises(DatasetError) as error:
            call(wrong)
        said, closest = str(error.value).split("closest names are ")
        assert repr(wrong) in said and closest.split(", ")[0] == offered
        assert "\n" not in str(error.value)
    assert wrong not in DatasetCatalog


def test_errors_of_other_readers_become_one_line(name: str) -> None:
    def read() -> list[dict[str, Any]]:
        raise KeyError("image_id\nin line 3")

    DatasetCatalog.register(f"{name}_foreign", read)
    with pytest.raises(DatasetError, match="foreign.*KeyError") as error:
        get_records(f"{name}_foreign")
    assert "\n" not in str(error.value)
