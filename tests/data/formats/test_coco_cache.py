"""The cache of a COCO JSON: the same records, never those of another file, whatever has become of it."""

import json
import logging
import multiprocessing
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cupre_d2.data.formats import coco_cache, coco_json
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.errors import DatasetError

SIZE = 20
NAME = ".coco.json.cupre_d2.cache"


def write(folder: Path, shift: int = 0) -> Path:
    """A JSON with polygons of one and two parts, a crowd, and one annotation that is left out."""
    square = [1 + shift, 1, 5, 1, 5.125, 5]
    rle = {"size": [SIZE, SIZE], "counts": [7, 5, SIZE * SIZE - 12]}
    masks: list[Any] = [[square], [square, [8, 8, 9, 8, 9, 9]], rle, [[1, 1, 2, 2]]]
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in (4, "b")]
    annotations = [
        {"id": number, "image_id": images[number % 2]["id"], "category_id": 3 + number % 2, "segmentation": mask}
        for number, mask in enumerate(masks)
    ]
    for image in images:
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(folder / image["file_name"])
    json_file = folder / "coco.json"
    categories = [{"id": 4, "name": "nucleus"}, {"id": 3, "name": "cell"}]
    json_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return json_file


@pytest.fixture()
def json_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Big enough for a cache."""
    monkeypatch.setattr(coco_cache, "SMALLEST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    return write(tmp_path / "set")


@pytest.fixture()
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time a JSON is parsed."""
    calls: list[int] = []
    parse = coco_json.parse
    monkeypatch.setattr(coco_json, "parse", lambda content: (calls.append(1), parse(content))[1])
    return calls


def load(json_file: Path) -> Any:
    records, categories = load_coco_json(json_file, json_file.parent)
    return json.loads(json.dumps([records, categories], default=np.ndarray.tolist))


def test_small_files_get_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load(write(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["4.png", "b.png", "coco.json"]


def test_second_load_is_the_first(json_file: Path, parsed: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first, second = load(json_file), load(json_file)
    assert parsed == [1]
    assert first == second and len(first[0][0]["annotations"]) == 2 and len(first[0][1]["annotations"]) == 1
    before, after = caplog.messages
    assert before == after and "left out 1 annotations with only degenerate polygons (of 4 annotations)" in after
    assert sorted(file.name for file in json_file.parent.iterdir()) == [NAME, "4.png", "b.png", "coco.json"]
    assert not (json_file.parents[1] / "home").exists()


def test_polygons_of_a_cache_are_read_only_and_in_place(json_file: Path) -> None:
    load(json_file)
    records, _ = load_coco_json(json_file, json_file.parent)
    (polygon,) = records[0]["annotations"][0]["segmentation"]
    assert polygon.dtype == np.float64 and polygon.tolist() == [1, 1, 5, 1, 5.125, 5]
    with pytest.raises(ValueError, match="read-only"):
        polygon += 1


def test_another_content_of_the_same_size_and_time(json_file: Path, parsed: list[int]) -> None:
    before = load(json_file)
    stat = json_file.stat()
    write(json_file.parent, shift=1)
    os.utime(json_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert json_file.stat().st_size == stat.st_size
    after = load(json_file)
    assert after[0][0]["annotations"][0]["segmentation"] == [[2, 1, 5, 1, 5.125, 5]] and after != before
    assert load(json_file) == after and len(parsed) == 2


def test_images_must_still_be_there(json_file: Path) -> None:
    load(json_file)
    (json_file.parent / "b.png").unlink()
    with pytest.raises(DatasetError, match="image 'b', field file_name: .*b.png' is not on disk .1 of 2"):
        load(json_file)


def test_images_of_a_former_content_need_not_be_there(json_file: Path) -> None:
    load(json_file)
    json_file.write_text(json_file.read_text().replace("b.png", "c.png"))
    (json_file.parent / "b.png").rename(json_file.parent / "c.png")
    assert load(json_file)[0][1]["file_name"].endswith("c.png")


def test_a_broken_json_gets_no_cache(json_file: Path) -> None:
    json_file.write_text(json_file.read_text()[:-1])
    with pytest.raises(DatasetError, match="is no JSON"):
        load(json_file)
    assert not (json_file.parent / NAME).exists()


def damages(content: bytes) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    yield from (b"", b"x", content[:-1], content + b"x", content[len(content) // 2 :], b"\0" * len(content), content * 2)
    yield content.replace(b"arrays", b"errors", 1)
    # Of the version before, which has no areas.
    yield content.replace(b"arrays 4", b"arrays 3", 1)
    for place in rng.choice(len(content), 150, replace=False):
        yield content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1 :]
    for place in rng.choice(len(content), 30, replace=False):
        yield content[:place]


def test_a_damaged_cache_is_made_anew(json_file: Path, parsed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_cache.os, "fsync", lambda _: None)
    expected = load(json_file)
    place = json_file.parent / NAME
    whole = place.read_bytes()
    for count, damaged in enumerate(damages(whole), start=2):
        place.write_bytes(damaged)
        assert load(json_file) == expected
        assert len(parsed) == count and place.read_bytes() == whole


def test_a_forged_cache_crashes_nothing(json_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage whose checksum was set right."""
    monkeypatch.setattr(coco_cache.os, "fsync", lambda _: None)
    load(json_file)
    place = json_file.parent / NAME
    whole = place.read_bytes()
    start = whole.index(b"\n") + 1
    rng = np.random.default_rng(0)
    for _ in range(400):
        payload = bytearray(whole[start + 16 :])
        for position in rng.integers(len(payload), size=rng.integers(1, 4)):
            payload[position] = rng.integers(256)
        place.write_bytes(whole[: start + 8] + zlib.crc32(payload).to_bytes(8, "little") + payload)
        records = load(json_file)[0]
        assert [record["image_id"] for record in records]


@pytest.mark.parametrize("kind", ["folder", "link to nothing", "link to a device"])
def test_something_else_in_the_place_of_the_cache(json_file: Path, parsed: list[int], kind: str) -> None:
    place = json_file.parent / NAME
    if kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/null" if "device" in kind else json_file.parent / "nothing")
    assert load(json_file) == load(json_file) and parsed == [1]
    if kind == "folder":
        (home,) = (json_file.parents[1] / "home" / "cupre_d2").iterdir()
        assert home.name.endswith(".cupre_d2.cache")
    else:
        assert not place.is_symlink() and place.is_file()


def test_caches_elsewhere_are_told_apart(json_file: Path) -> None:
    """By the path of the JSON, where it can't be beside it."""
    other = json_file.parents[1] / "other"
    other.mkdir()
    for folder in (json_file.parent, other):
        (folder / NAME).mkdir()
    expected = load(json_file), load(write(other, shift=1))
    assert len(list((json_file.parents[1] / "home" / "cupre_d2").iterdir())) == 2
    assert (load(json_file), load(other / "coco.json")) == expected


def test_no_place_for_a_cache(json_file: Path, parsed: list[int], caplog: pytest.LogCaptureFixture) -> None:
    (json_file.parent / NAME).mkdir()
    (json_file.parents[1] / "home").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert load(json_file) == load(json_file)
    assert len(parsed) == 2 and "no cache can be written to" in caplog.text
    assert sorted(file.name for file in json_file.parent.iterdir()) == [NAME, "4.png", "b.png", "coco.json"]


def test_failing_writes_leave_nothing_behind(json_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(coco_cache.os, "fsync", full)
    load(json_file)
    assert not list(json_file.parent.glob(".coco*")) and not list((json_file.parents[1] / "home").rglob("*.cache*"))


def test_others_may_read_it(json_file: Path) -> None:
    load(json_file)
    assert (json_file.parent / NAME).stat().st_mode == json_file.stat().st_mode


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(json_file: Path) -> None:
    abandoned, written = (json_file.parent / f"{NAME}-{which}" for which in "ab")
    for file in (abandoned, written):
        file.write_bytes(b"part")
    os.utime(abandoned, (0, time.time() - 2 * 3600))
    load(json_file)
    assert not abandoned.exists() and written.exists()


def test_processes_at_once(json_file: Path) -> None:
    expected = load(json_file)
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        (json_file.parent / NAME).unlink()
        with context.Pool(4) as pool:
            assert pool.map(load, [json_file] * 8, chunksize=1) == [expected] * 8
        assert sorted(file.name for file in json_file.parent.iterdir()) == [NAME, "4.png", "b.png", "coco.json"]
