"""The job, with stand-ins for the model and the writers that take milliseconds."""

import errno
import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from cupre_d2.data.images import Contrast
from cupre_d2.engine import preemption
from cupre_d2.errors import ConfigError, DatasetError, ResultsError
from cupre_d2.files import hold, release, write_text, write_whole
from cupre_d2.predict.run import FILE, Outcome, Written, predict
from cupre_d2.predict.sources import Page


class Bright:
    """A model to which what is bright is a cell."""

    def __init__(self, fingerprint: str = "one", seconds: float = 0.0) -> None:
        self.fingerprint = fingerprint
        self.seconds = seconds
        self.seen: list[str] = []

    def __call__(self, page: Page) -> Any:
        time.sleep(self.seconds)
        self.seen.append(page.name)
        labels, count = ndimage.label(page.read()[:, :, 0] > 128)
        return SimpleNamespace(labels=labels.astype(np.uint32), count=count)


class Arrays:
    """Outputs: an array a page, and what is of all of them."""

    def __init__(self, folder: Path, formats: Sequence[str] = ("labels",)) -> None:
        self.folder = folder
        self.formats = formats

    def write(self, page: Page, segmentation: Any) -> Written:
        files = [f"{page.name}.{format}.npy" for format in self.formats]
        for file in files:
            write_whole(self.folder / file, lambda opened: np.save(opened, segmentation.labels))
        return Written(files, {"cells": segmentation.count})

    def finish(self, pages: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> None:
        rows = [f"{page['name']},{page['summary']['cells']}\n" for page in pages]
        write_text(self.folder / "counts.csv", "".join(rows))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", 4)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"
    release(tmp_path / "out")


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (20 + index, 30)).astype(np.uint8)).save(folder / f"i{index:02}.png")
    return folder


def go(
    images: Path, out: Path, model: Bright, formats: Sequence[str] = ("labels",), **settings: Any
) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    outcome = predict([images], out, model, Arrays(out, formats), settings, say=said.append)
    return outcome, said


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def test_what_is_done_is_not_done_again(images: Path, out: Path) -> None:
    outcome, _ = go(images, out, Bright(), diameter=None)
    assert (outcome.done, outcome.kept, outcome.failures, outcome.exit_code) == (4, 0, [], 0)
    assert outcome.cells == sum(int(line.split(",")[1]) for line in (out / "counts.csv").read_text().splitlines()) > 0
    whole = content(out)
    model = Bright()
    outcome, _ = go(images, out, model, diameter=None)
    assert (outcome.done, outcome.kept, model.seen) == (0, 4, []) and content(out) == whole

    # Another content of the same size, an output that is gone, a new image.
    stat = (images / "i01.png").stat()
    os.utime(images / "i01.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    (out / "i02.labels.npy").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(images / "black.png")
    outcome, _ = go(images, out, model, diameter=None)
    assert sorted(model.seen) == ["black", "i01", "i02"] and outcome.empty == ["black"]
    assert len((out / "counts.csv").read_text().splitlines()) == 5

    model = Bright()
    go(images, out, model, ("labels", "more"), diameter=None)
    assert len(model.seen) == 5 and (out / "i02.more.npy").is_file()
    assert go(images, out, Bright(), ("more",), diameter=None)[0].kept == 5
    # Formats of the same input add up.
    go(images, out, Bright(), ("third",), diameter=None)
    assert go(images, out, Bright(), ("labels", "third"), diameter=None)[0].kept == 5
    (images / "i00.png").rename(images / "renamed.png")
    outcome, said = go(images, out, model, ("fourth",), diameter=None)
    assert said == [f"{out}: left 1 images of before out, as they lack some formats; name them again"]
    assert "i00" not in (out / "counts.csv").read_text() and "renamed" in (out / "counts.csv").read_text()


def test_other_settings_are_refused(images: Path, out: Path) -> None:
    go(images, out, Bright(), diameter=30, tile=None)
    before = content(out)
    with pytest.raises(
        ConfigError, match="out: holds predictions with diameter 30, now 20; expected the same, or another --output"
    ):
        go(images, out, Bright(), diameter=20, tile=None)
    with pytest.raises(ConfigError, match=r"out: holds predictions of another model \(one, now two\)"):
        go(images, out, Bright("two"), diameter=30, tile=None)
    assert content(out) == before
    assert go(images, out, Bright(), diameter=30, tile=None)[0].kept == 4


def test_a_choice_of_channels_is_a_setting_of_the_image(tmp_path: Path, out: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    for channel in (2, 2, 0):
        predict([tmp_path / "a.png"], out, Bright(), Arrays(out), {}, channels=[channel])
        np.testing.assert_array_equal(np.load(out / "a.labels.npy"), ndimage.label(image[:, :, channel] > 128)[0])


def test_folders_of_others_are_left_alone(images: Path, out: Path) -> None:
    out.mkdir()
    (out / "labels").mkdir()
    with pytest.raises(
        ConfigError, match=r"out: not empty \(labels\), and no predictions; expected a new or an empty folder"
    ):
        go(images, out, Bright())
    (out / "labels").rmdir()
    (out / FILE).write_text("{")
    with pytest.raises(ResultsError, match="predictions.json: broken .*; remove it"):
        go(images, out, Bright())
    (out / FILE).unlink()
    (out / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/inner: cannot be written to \(Not a directory\)"):
        go(images, out / "file/inner", Bright())


def hold_for_long(folder: Path, held: Any) -> None:
    hold(folder, "predicting there")
    held.set()
    time.sleep(60)


FORK = multiprocessing.get_context("fork")


def test_one_process_at_a_time(images: Path, out: Path) -> None:
    held = FORK.Event()
    other = FORK.Process(target=hold_for_long, args=(out, held))
    other.start()
    try:
        assert held.wait(20)
        with pytest.raises(ConfigError, match="another process is predicting there"):
            go(images, out, Bright())
    finally:
        other.kill()
        other.join()
    assert go(images, out, Bright())[0].done == 4


class Failing(Bright):
    errors: dict[str, Exception] = {
        "i01": DatasetError("images/i01.png: no value is finite; expected numbers"),
        "i02": RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"),
    }

    def __call__(self, page: Page) -> Any:
        if page.name in self.errors:
            raise self.errors[page.name]
        return super().__call__(page)


def test_a_page_that_fails_is_told_and_left_out(images: Path, out: Path) -> None:
    (images / "text.tif").write_text("Notes")
    outcome, said = go(images, out, Failing())
    assert (outcome.done, outcome.exit_code) == (2, 1)
    assert said == outcome.failures and all("\n" not in line for line in said)
    assert said[0].startswith(f"{images}/text.tif: cannot be read as an image")
    assert said[1:] == [
        "images/i01.png: no value is finite; expected numbers",
        f"{images}/i02.png: RuntimeError: CUDA out of memory. Tried to allocate 2 GiB",
    ]
    outcome, said = go(images, out, Bright())
    assert (outcome.done, outcome.kept, outcome.exit_code, len(said)) == (2, 2, 1, 1)
    (images / "text.tif").rename(images.parent / "text.tif")
    assert go(images, out, Bright())[0].exit_code == 0
    outcome = predict([images.parent / "text.tif"], out.with_name("none"), Bright(), Arrays(out), {})
    assert outcome.exit_code == 2


STRANGE: dict[str, tuple[np.ndarray, dict[str, Any], int, str]] = {
    # samples, options, pages done, and what is said
    "black.tif": (np.zeros((30, 40), np.uint16), {}, 1, ""),
    "one.tif": (np.full((1, 1), 700, np.uint16), {}, 1, ""),
    "holes.tif": (np.where(np.eye(30), np.nan, 1.0).astype(np.float32), {}, 1, ""),
    "nothing.tif": (np.full((30, 40), np.nan, np.float32), {}, 0, "no value is finite; expected numbers"),
    "five.tif": (np.zeros((2, 3, 4, 30, 40), np.uint8), {"photometric": "minisblack"}, 24, ""),
    "dyes.tif": (
        np.zeros((2, 2, 30, 40), np.uint8),
        {"imagej": True, "metadata": {"axes": "TCYX"}},
        0,
        "2 channels; expected grey, RGB or RGB with alpha, or one or three to be chosen "
        "(of a data set by the field channels, in predict by --channels)",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_images(images: Path, out: Path, name: str) -> None:
    """Each is done or said in a line a page, and the others are done."""

    class Contrasted(Bright):
        def __call__(self, page: Page) -> Any:
            samples = page.read()
            grey = Contrast.of(samples, page.bits, (0.1, 99.9), str(page))(samples, "L")
            labels, count = ndimage.label(grey[:, :, 0] > 128)
            return SimpleNamespace(labels=labels, count=count)

    samples, options, pages, reason = STRANGE[name]
    tifffile.imwrite(images / name, samples, **options)
    outcome, said = go(images, out, Contrasted())
    assert outcome.done == 4 + pages and outcome.exit_code == int(bool(reason))
    assert all(line.startswith(f"{images / name}") and line.endswith(reason) and "\n" not in line for line in said)
    # Of pages that fail alike, once.
    assert len(said) == bool(reason) and len(outcome.failures) == (2 if name == "dyes.tif" else len(said))


def test_full_disk(images: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def fsync(file: int) -> None:
        if (out / "i02.labels.npy.partial").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", fsync)
        go(images, out, Bright())
    model = Bright()
    assert (go(images, out, model)[0].kept, model.seen) == (2, ["i02", "i03"])


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_ends_it_after_the_image(images: Path, out: Path, number: int) -> None:
    class Signalled(Bright):
        def __call__(self, page: Page) -> Any:
            if len(self.seen) == 1:
                os.kill(os.getpid(), number)
            return super().__call__(page)

    model = Signalled()
    with preemption.watching(), pytest.raises(preemption.Preempted) as left:
        go(images, out, model)
    assert left.value.code == preemption.RESUME_ME and model.seen == ["i00", "i01"]
    assert not (out / "counts.csv").exists()
    assert go(images, out, Bright())[0].kept == 2


def quietly(images: Path, out: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    outcome, _ = go(images, out, Bright(seconds=0.02))
    os._exit(outcome.exit_code)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """And started again, until it ends: the outputs of a job that was left alone, none half-written."""
    images, rng = draw(tmp_path / "fifty", 50), random.Random(0)
    go(images, tmp_path / "whole", Bright())
    out = tmp_path / "killed"
    kills = 0
    while True:
        job = FORK.Process(target=quietly, args=(images, out))
        job.start()
        job.join(rng.uniform(0.02, 0.15) if kills < 8 else 60)
        if job.exitcode is not None:
            break
        job.kill()
        job.join()
        kills += 1
    assert job.exitcode == 0 and kills >= 3
    assert content(out) == content(tmp_path / "whole")
    pages = json.loads((out / FILE).read_text())["pages"]
    assert len(pages) == 50
