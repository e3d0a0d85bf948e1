"""Runs commands side by side, each as soon as what it needs is finished; shows progress and an ETA."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cupre_d2.engine.results import StageRecord
from cupre_d2.errors import CupreError
from cupre_d2.experiments.tasks import Task

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class TaskError(CupreError):
    """A task ended with an error; those that need nothing of it were still run."""


@dataclass
class Paces:
    """Seconds an iteration, by stage: of the records there are."""

    seconds: dict[str, float] = field(default_factory=dict)
    iterations: dict[str, int] = field(default_factory=dict)

    def add(self, stage: str, record: StageRecord) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + record.seconds
        self.iterations[stage] = self.iterations.get(stage, 0) + record.iterations

    def of(self, task: Task) -> float | None:
        """Seconds that a task will take; None where no stage of its name has been measured."""
        done = self.iterations.get(task.stage, 0)
        return task.iterations * self.seconds[task.stage] / done if done else None


def paces(tasks: Sequence[Task]) -> Paces:
    """What the finished ones took."""
    measured = Paces()
    for task in tasks:
        if record := task.record():
            measured.add(task.stage, record)
    return measured


class Runnable(Protocol):
    """A process that is finished when its results are there.

    Attributes:
        needs: keys of those that have to be finished before.
        log: where what it prints is added to.
    """

    @property
    def key(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def log(self) -> Path: ...
    def prepare(self) -> list[str]:
        """Makes its folder ready; returns the command line."""

    def finished(self) -> bool: ...


def run(items: Mapping[str, Runnable], jobs: int, outlook: Callable[[], str]) -> None:
    """Runs what is not finished, `jobs` at a time, the processor's cores divided among them; from the main thread.

    Whatever ends it (an error, Ctrl-C, SIGTERM) ends the processes too.

    Args:
        items: by key, with all they need.
        outlook: what is left, for people; shown when one starts or ends.

    Raises:
        TaskError: some of them failed; names the first and its log. Those they were needed for did not run.
    """
    waiting = sorted((item for item in items.values() if not item.finished()), key=lambda item: -_followers(item, items))
    running: dict[str, subprocess.Popen] = {}
    failed: list[Runnable] = []
    # A cluster's way to end a job. By default it would leave the processes behind, and the next run would start them twice.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        while True:
            ready = [item for item in waiting if all(items[key].finished() for key in item.needs)]
            for item in ready[: jobs - len(running)]:
                waiting.remove(item)
                running[item.key] = _start(item, jobs)
                logger.info(f"{item.key}: started; {outlook()}")
            if not running:
                break
            time.sleep(POLL_SECONDS)
            for key in [key for key, process in running.items() if process.poll() is not None]:
                code = running.pop(key).returncode
                if code or not items[key].finished():
                    failed.append(items[key])
                    logger.error(f"{key}: failed with exit code {code}; see {items[key].log}")
                else:
                    logger.info(f"{key}: finished; {outlook()}")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)
    if failed:
        others = f", and {len(failed) - 1} others" if len(failed) > 1 else ""
        raise TaskError(f"{failed[0].key} failed{others}: {_last_line(failed[0].log)} ({failed[0].log})")


def _followers(item: Runnable, items: Mapping[str, Runnable]) -> int:
    """How many cannot run before it has: those that hold up most go first."""
    direct = [other for other in items.values() if item.key in other.needs]
    return len(direct) + sum(_followers(other, items) for other in direct)


def _start(item: Runnable, jobs: int) -> subprocess.Popen:
    command = item.prepare()
    with item.log.open("a") as output:
        return subprocess.Popen(command, env=environment(jobs), stdout=output, stderr=subprocess.STDOUT)


def environment(jobs: int) -> dict[str, str]:
    """This process's, with the threads of one of `jobs` processes."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def outlook(tasks: Mapping[str, Task], jobs: int) -> str:
    """How many tasks are done and how long the others will take."""
    left = [task for task in tasks.values() if not task.finished()]
    return f"{len(tasks) - len(left)} of {len(tasks)} done, {time_left(left, paces(list(tasks.values())), jobs)}"


def time_left(left: Sequence[Task], measured: Paces, jobs: int) -> str:
    """For people: how long the tasks will take, as far as stages like them were measured."""
    estimates = [measured.of(task) for task in left]
    known = sum(seconds for seconds in estimates if seconds is not None) / jobs
    unknown = sum(seconds is None for seconds in estimates)
    return f"about {known / 60:.0f} min left" + (f" and {unknown} tasks of which nothing is measured yet" if unknown else "")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "it printed nothing"
