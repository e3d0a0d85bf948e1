"""Broken COCO files, in thousands of ways: each ends in one line, or in records that lack nothing that was not counted."""

import copy
import json
import logging
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.formats import coco_cache
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.errors import DatasetError

HEIGHT, WIDTH = 12, 20
SECONDS = 5
SQUARE = [2, 2, 8, 2, 8.5, 8, 2, 8]
RUNS = [30, 5, 7, 5, HEIGHT * WIDTH - 47]
COUNTS = mask_util.frPyObjects({"size": [HEIGHT, WIDTH], "counts": RUNS}, HEIGHT, WIDTH)["counts"].decode()

WHOLE = {
    "info": {"year": 2026},
    "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 5)],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "iscrowd": 0,
            "area": 30.25,
            "bbox": [2, 2, 6.5, 6],
            "segmentation": [SQUARE],
        },
        {"id": 2, "image_id": 5, "category_id": 9, "iscrowd": 0, "segmentation": [SQUARE, [1, 1, 3, 1, 3, 3]]},
        {"id": 3, "image_id": 5, "category_id": 3, "segmentation": {"size": [HEIGHT, WIDTH], "counts": COUNTS}},
        {"id": 4, "image_id": 2, "category_id": 3, "iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": RUNS}},
        {"id": 5, "image_id": 2, "category_id": 9, "bbox": [1, 1, 4, 4], "score": 16.5, "segmentation": [[1, 1, 3, 3]]},
    ],
    "categories": [{"id": 9, "name": "late"}, {"id": 3, "name": "early"}],
}

NESTED: list = []
for _ in range(300):
    NESTED = [NESTED]

# What takes the place of a value, key or entry.
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 5, 0.5, 1.0, -0.0, 2**31, 2**32, 2**63, 2**64, 10**30, -(10**30)),
    *(1e5, 1e7, 1e300, -1e308, float("nan"), float("inf"), -float("inf")),
    *("", "1", "x", "2.png", "é\u2028ß", "\ud800", "a\nb", "a\0b", "x" * 5000, "/etc/passwd", "../1.png", "./1.png", "."),
    *([], [[]], [None], [1, 2, 3, 4], [[1, 1, 2, 2, float("nan"), 3]], [SQUARE, "x"], [SQUARE, [1, 2, 3]], NESTED, {}),
    *({"size": [HEIGHT, WIDTH]}, {"size": [HEIGHT, WIDTH], "counts": "\x7f"}, {"size": [HEIGHT, WIDTH], "counts": "oooo"}),
    *(
        {"size": [HEIGHT, WIDTH], "counts": "é0"},
        {"size": [WIDTH, HEIGHT], "counts": COUNTS},
        {"size": NESTED, "counts": []},
    ),
    *({"size": [HEIGHT, WIDTH], "counts": counts} for counts in ("", [], [240], [0, 240], [-5, 245], [1e3], COUNTS[:-1])),
    *({"size": [HEIGHT, WIDTH], "counts": counts} for counts in ([0, 0, 0, 240], [10**20], ["1"], COUNTS + "0", "1" * 300)),
    *({"id": 1}, {"id": 7, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}),
]


class Hang(BaseException):
    """No error handling catches it."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three images; every JSON in it gets a cache."""
    folder = tmp_path_factory.mktemp("corrupt")
    for image in (1, 2, 5):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / f"{image}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_cache, "SMALLEST", 1)
        patch.setattr(coco_cache.os, "fsync", lambda _: None)
        patch.setenv("XDG_CACHE_HOME", str(folder / "home"))
        yield folder


Mutation = Callable[[Any, Any, Any], None]


def delete(parent: Any, key: Any, _: Any) -> None:
    del parent[key]


def replace(parent: Any, key: Any, value: Any) -> None:
    parent[key] = copy.deepcopy(value)


def rename(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, dict):
        parent[str(value)] = parent.pop(key)
    else:
        parent.insert(key, copy.deepcopy(value))


def duplicate(parent: Any, key: Any, _: Any) -> None:
    if isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[f"{key}2"] = copy.deepcopy(parent[key])


def move_first(parent: Any, key: Any, _: Any) -> None:
    if isinstance(parent, list):
        parent.insert(0, parent.pop(key))
    else:
        parent[key] = list(parent.values())[0]


def wrap(parent: Any, key: Any, _: Any) -> None:
    parent[key] = [parent[key]]


def as_text(parent: Any, key: Any, _: Any) -> None:
    parent[key] = str(parent[key])


MUTATIONS: list[Mutation] = [replace, replace, replace, delete, rename, duplicate, move_first, wrap, as_text]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each value within, as its parent and its key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def corrupt(steps: list[tuple[int, Mutation, Any]]) -> dict[str, Any]:
    content = copy.deepcopy(WHOLE)
    for place, mutation, value in steps:
        found = list(places(content))
        if found:
            mutation(*found[place % len(found)], value)
    return content


def normal(value: Any) -> Any:
    """With lists in place of arrays, so that it can be compared."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [normal(item) for item in value]
    return value


def load(json_file: Path) -> tuple[str, list[Any], str]:
    """The error, or the records and what was logged."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("cupre_d2")
    logger.addHandler(handler)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        records, _ = load_coco_json(json_file, json_file.parent)
        return "", normal(records), "\n".join(messages)
    except DatasetError as error:
        return str(error), [], ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        logger.removeHandler(handler)


def check(folder: Path, content: bytes) -> str:
    """The error; or "" for a file that could be used, none of whose annotations is lost without being counted."""
    json_file = folder / "coco.json"
    json_file.write_bytes(content)
    error, records, logged = load(json_file)
    # Once more, of what was kept.
    assert load(json_file) == (error, records, logged)
    if error:
        assert error.splitlines() == [error] and len(error) < 1000 and str(folder) in error
        return error
    stated = json.loads(content.decode(json.detect_encoding(content), "replace"))
    assert [record["image_id"] for record in records] == [image["id"] for image in stated["images"]]
    for record in records:
        assert Path(record["file_name"]).is_file() and folder in Path(record["file_name"]).parents
        for annotation in record["annotations"]:
            check_annotation(annotation, record["height"], record["width"])
    left_out = re.findall(r"(\d+) annotations (?:with|without) ", logged)
    kept = sum(len(record["annotations"]) for record in records)
    assert kept + sum(map(int, left_out)) == len(stated["annotations"])
    if left_out:
        assert f"(of {len(stated['annotations'])} annotations)" in logged
    return ""


def check_annotation(annotation: dict[str, Any], height: int, width: int) -> None:
    """It can be drawn."""
    assert annotation["category_id"] in (0, 1, 2) and annotation.get("iscrowd", 1) == 1 and annotation.get("area", 0) >= 0
    assert len(annotation["bbox"]) == 4 and np.isfinite(annotation["bbox"]).all()
    mask = annotation["segmentation"]
    if isinstance(mask, dict):
        assert mask["size"] == [height, width] and mask_util.area(mask) > 0
    else:
        assert mask and all(len(polygon) >= 6 for polygon in mask)
        assert np.abs(np.concatenate(mask)).max() <= 1e6


quick = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
steps = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(MUTATIONS), st.sampled_from(VALUES)), min_size=1, max_size=3
)


def test_whole(folder: Path) -> None:
    assert check(folder, json.dumps(WHOLE).encode()) == ""


@settings(quick, max_examples=1000)
@given(steps=steps)
def test_corrupt_content(folder: Path, steps: list[tuple[int, Mutation, Any]]) -> None:
    check(folder, json.dumps(corrupt(steps)).encode())


def test_each_value_in_each_place(folder: Path) -> None:
    """An annotation's, image's or category's error names it, or what is said about it."""
    records = {"images": "image", "annotations": "annotation", "categories": "category"}
    errors = 0
    for section, record in records.items():
        for key in dict.fromkeys(key for entry in WHOLE[section] for key in entry):
            for value in VALUES:
                content = copy.deepcopy(WHOLE)
                content[section][0][key] = value
                error = check(folder, json.dumps(content).encode())
                errors += bool(error)
                assert not error or re.search(rf"{record} |annotation |is no JSON|nested", error)
    assert errors > 500


@settings(quick, max_examples=500)
@given(
    first=st.integers(0, 10_000),
    second=st.integers(0, 10_000),
    damage=st.sampled_from(["truncate", "flip", "insert", "cut", "repeat", "swap"]),
    value=st.integers(0, 255),
)
def test_corrupt_bytes(folder: Path, first: int, second: int, damage: str, value: int) -> None:
    content = json.dumps(WHOLE).encode()
    start, end = sorted((first % len(content), second % len(content)))
    if damage == "truncate":
        content = content[:start]
    elif damage == "flip":
        content = content[:start] + bytes([content[start] ^ (1 << value % 8)]) + content[start + 1 :]
    elif damage == "insert":
        content = content[:start] + bytes([value]) * (1 + value % 3) + content[start:]
    elif damage == "cut":
        content = content[:start] + content[end:]
    elif damage == "repeat":
        content = content[:end] + content[start:]
    else:
        content = content[end:] + content[start:end] + content[:start]
    check(folder, content)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(folder: Path, encoding: str) -> None:
    content = copy.deepcopy(WHOLE)
    content["categories"][0]["name"] = "späť"
    assert check(folder, json.dumps(content, ensure_ascii=False).encode(encoding)) == ""


WHOLE_TEXT = json.dumps(WHOLE)
SHORT = WHOLE_TEXT[:-1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is no JSON"),
        ("null", "expected an object"),
        ("[" * 2_000_000, "nested"),
        ('{"annotations":' * 500_000, "nested"),
        (SHORT + ', "more": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        (WHOLE_TEXT.replace("[[1, 1, 3, 3]]", "[" * 100_000 + "]" * 100_000), "nested"),
        (WHOLE_TEXT.replace("8.5", "1" * 4000), "annotation 1, field segmentation"),
        (WHOLE_TEXT.replace("8.5", "1e400"), "annotation 1, field segmentation"),
        (WHOLE_TEXT.replace("8.5", "1e20"), "annotation 1, field segmentation: 1e+20; expected at most"),
        (WHOLE_TEXT.replace(" 6.5, ", " NaN, "), "annotation 1, field bbox"),
        (WHOLE_TEXT + WHOLE_TEXT, "is no JSON"),
        (SHORT + ', "annotations": []}', "'annotations' is there twice"),
        (SHORT + ', "images" : []}', "'images' is there twice"),
        (WHOLE_TEXT.encode() + b"\0", "is no JSON"),
        (WHOLE_TEXT.encode().replace(b"early", b"\xff\xfe"), "is no JSON"),
    ],
)
def test_unusual_files(folder: Path, content: str | bytes, said: str) -> None:
    error = check(folder, content if isinstance(content, bytes) else content.encode())
    assert said in error


@pytest.mark.parametrize(
    "content",
    [
        WHOLE_TEXT.replace("16.5", "NaN"),
        WHOLE_TEXT.replace("16.5", "1e999"),
        WHOLE_TEXT.replace("16.5", "1" * 4000),
        WHOLE_TEXT.replace('"year": 2026', '"annotations": [], "images": 7'),
        WHOLE_TEXT.replace('"iscrowd": 0', '"iscrowd": false'),
        WHOLE_TEXT.replace('"id": 5, "image_id"', '"image_id"'),
        WHOLE_TEXT.replace('"id": 5, "image_id"', '"id": [{"a": 1e999}], "image_id"'),
    ],
)
def test_unusual_but_sound(folder: Path, content: str) -> None:
    assert check(folder, content.encode()) == ""
