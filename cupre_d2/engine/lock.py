"""One process at a time in a folder."""

import fcntl
import logging
import os
from typing import IO

from cupre_d2.errors import ConfigError

logger = logging.getLogger(__name__)

FILE = ".lock"
# By folder; a lock ends with its process, however that ends.
_held: dict[str, IO[str]] = {}


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
        file = open(os.path.join(path, FILE), "a")  # noqa: SIM115
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
