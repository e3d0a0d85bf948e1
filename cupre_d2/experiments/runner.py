"""Runs tasks side by side, each as soon as what it needs is finished."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cupre_d2.engine import preemption
from cupre_d2.experiments.attempts import TaskError

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


class Runnable(Protocol):
    """A process that is finished when its results are there.

    Attributes:
        needs: keys of those that have to be finished before.
        log: where what it prints is added to.
        timing: where its seconds are kept.
    """

    @property
    def key(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def log(self) -> Path: ...
    @property
    def timing(self) -> Path: ...
    def prepare(self) -> list[str]:
        """Makes its folder ready; returns the command line."""

    def finished(self) -> bool: ...


class Running(Protocol):
    """A process that was started."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""

    def terminate(self) -> None: ...
    def wait(self) -> None:
        """Until it has ended."""


class Engine(Protocol):
    """Where processes run.

    Attributes:
        slots: how many side by side.
    """

    @property
    def slots(self) -> int: ...
    def start(self, item: Runnable) -> Running: ...


def run(items: Mapping[str, Runnable], engine: Engine, outlook: Callable[[], str]) -> None:
    """Runs what is not finished, as many at a time as the engine takes; from the main thread.

    Whatever ends it (an error, Ctrl-C, what `preemption.watching` raises) ends the processes too.

    Args:
        items: by key, with all they need.
        outlook: what is left, for people; shown when one starts or ends.

    Raises:
        TaskError: some of them failed; names the first and its log. Those they were needed for did not run.
    """
    waiting = sorted((item for item in items.values() if not item.finished()), key=lambda item: -_followers(item, items))
    running: dict[str, Running] = {}
    failed: list[Runnable] = []
    try:
        while True:
            ready = [item for item in waiting if all(items[key].finished() for key in item.needs)]
            for item in ready[: max(0, engine.slots - len(running))]:
                waiting.remove(item)
                running[item.key] = engine.start(item)
                logger.info(f"{item.key}: started; {outlook()}")
            if not running:
                break
            time.sleep(POLL_SECONDS)
            codes = {key: process.poll() for key, process in running.items()}
            for key, code in codes.items():
                if code is None:
                    continue
                del running[key]
                if code or not items[key].finished():
                    failed.append(items[key])
                    logger.error(f"{key}: failed with exit code {code}; see {items[key].log}")
                else:
                    logger.info(f"{key}: finished; {outlook()}")
    finally:
        # A second signal would leave processes behind, beside which the next run would start them again.
        with preemption.deferring("leaving once the processes have ended"):
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    if failed:
        others = f", and {len(failed) - 1} others" if len(failed) > 1 else ""
        raise TaskError(f"{failed[0].key} failed{others}: {_last_line(failed[0].log)} ({failed[0].log})")


def _followers(item: Runnable, items: Mapping[str, Runnable]) -> int:
    """How many cannot run before it has: those that hold up most go first."""
    direct = [other for other in items.values() if item.key in other.needs]
    return len(direct) + sum(_followers(other, items) for other in direct)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "it printed nothing"
