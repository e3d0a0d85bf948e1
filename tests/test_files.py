import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cupre_d2.engine import pipeline
from cupre_d2.errors import ConfigError
from cupre_d2.files import LOCK, hold, release


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "out"
    yield folder
    release(folder)


def is_free(folder: Path) -> bool:
    """For others, whose locks are told apart by the opened file."""
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_held_until_released(folder: Path) -> None:
    hold(folder, "training there")
    hold(folder, "training there")
    assert not is_free(folder)
    release(folder)
    assert is_free(folder)
    release(folder)


def test_held_by_another(folder: Path) -> None:
    folder.mkdir()
    with (folder / LOCK).open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="out: another process is training there; wait for its end"):
            hold(folder, "training there")
    hold(folder, "training there")
    assert not is_free(folder)


def test_file_system_without_locks(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Some network drives have none: training goes on."""

    def none(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(logging.getLogger("cupre_d2"), "propagate", True)
    hold(folder, "training there")
    assert "its file system has no locks" in caplog.text and str(folder) in caplog.text


def test_refused_folders_are_let_go(small_datasets: Path, slim: list[str], folder: Path) -> None:
    config, opts = "configs/mini/scratch_bbbc038_5pct.yaml", [*slim, "OUTPUT_DIR", str(folder)]
    pipeline.prepare(config, opts)
    release(folder)
    with pytest.raises(ConfigError, match="was made with another config"):
        pipeline.prepare(config, [*opts, "SOLVER.BASE_LR", "0.5"])
    assert is_free(folder)
    pipeline.prepare(config, opts)
    assert not is_free(folder)
