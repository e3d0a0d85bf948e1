"""One try at a task in a process of its own, and the seconds that a task took over all its tries."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cupre_d2.engine.distributed import end_with
from cupre_d2.engine.results import broken, write_json
from cupre_d2.errors import CupreError


class TaskError(CupreError):
    """A task ended with an error."""


class Attempt:
    """A running process. When it has ended, its seconds from start to end are added to the task's.

    Args:
        log: what the process prints is added to it.
        timing: where the task's seconds are kept.
        folder: where the process runs; by default where this one does.

    Raises:
        ResultsError: the timing is broken.
    """

    def __init__(
        self, command: Sequence[str], log: Path, timing: Path, environment: Mapping[str, str], folder: Path | None = None
    ) -> None:
        self._timing = timing
        self._before = read_seconds(timing) or 0.0
        self._noted = False
        self._started = time.monotonic()
        parent = os.getpid()
        with log.open("a") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: end_with(parent, signal.SIGTERM),
            )

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        code = self._process.poll()
        if code is not None and not self._noted:
            self._noted = True
            write_json(self._timing, {"seconds": self._before + time.monotonic() - self._started})
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()
        self.poll()


def read_seconds(timing: Path) -> float | None:
    """What a task took so far, all attempts; None before the first has ended.

    Raises:
        ResultsError: the file is broken.
    """
    if not timing.is_file():
        return None
    content = read_json(timing)
    try:
        return float(content["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise broken(timing, error) from error


def read_json(file: Path) -> dict:
    """An object that a task has left in its folder.

    Raises:
        ResultsError: the file is not one.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise broken(file, error) from error
    if not isinstance(content, dict):
        raise broken(file, f"a {type(content).__name__}; expected an object")
    return content
