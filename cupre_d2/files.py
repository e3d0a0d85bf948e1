"""Files that are whole or not there, whenever a process ends; and folders that one process at a time has."""

import fcntl
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from cupre_d2.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK = ".lock"
# By folder; a lock ends with its process, however that ends.
_held: dict[str, IO[str]] = {}


def write_whole(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes beside the file, flushes to the disk, then renames: readers see the content of before or the new one.

    Args:
        write: gets the open file.

    Raises:
        OSError: as writing does; the file of before is untouched and the part that was written is removed.
    """
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            # Without it, a machine that loses power may have the new name but not the content.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


def write_text(path: str | Path, text: str) -> None:
    """As `write_whole`, of UTF-8, with "?" for what is no text, as file names may be; makes the folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def drop_later(path: Path, iteration: int) -> None:
    """Takes from a file of one JSON object a line what will be measured again: `iteration` and later, and a broken line."""
    if not path.is_file():
        return
    lines = path.read_text(errors="replace").splitlines()
    kept = [line for line in lines if _iteration(line) < iteration]
    if len(kept) < len(lines):
        write_text(path, "".join(f"{line}\n" for line in kept))


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def hold(folder: str | os.PathLike[str], doing: str) -> None:
    """Keeps other processes out of the folder, which is made, until this one ends or calls `release`.

    Args:
        doing: what is refused meanwhile, for people: "training there".

    Raises:
        ConfigError: another process holds it, or the folder cannot be written to.
    """
    path = os.path.realpath(folder)
    if path in _held:
        return
    try:
        os.makedirs(path, exist_ok=True)
        file = open(os.path.join(path, LOCK), "a")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {folder}: cannot be written to ({error})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(f"{folder}: another process is {doing}; wait for its end, or name another folder") from error
    except OSError as error:
        logger.warning(f"{folder}: its file system has no locks ({error}); another process there would not be noticed")
    _held[path] = file


def release(folder: str | os.PathLike[str]) -> None:
    """Lets others in."""
    file = _held.pop(os.path.realpath(folder), None)
    if file:
        file.close()
