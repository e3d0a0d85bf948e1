"""Runs tasks side by side, each as soon as what it needs is finished, and says how long the rest will take."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from cupre_d2.engine import preemption
from cupre_d2.errors import CupreError
from cupre_d2.experiments.engines import POLL_SECONDS, Attempt, Engine, RayAttempt
from cupre_d2.experiments.tasks import AnyTask

logger = logging.getLogger(__name__)


class TaskError(CupreError):
    """A task ended with an error."""


def run(items: Mapping[str, AnyTask], engine: Engine, outlook: Callable[[], str]) -> None:
    """Runs what is not finished, as many at a time as the engine takes; from the main thread.

    Whatever ends it (an error, Ctrl-C, what `preemption.watching` raises) ends the processes too.

    Args:
        items: by key, with all they need.
        outlook: what is left, for people; shown when one starts or ends.

    Raises:
        TaskError: some of them failed; names the first and its log. Those they were needed for did not run.
        ResultsError: what an earlier run left of one is broken.
    """
    waiting = sorted((item for item in items.values() if not item.finished()), key=lambda item: -_followers(item, items))
    running: dict[str, Attempt | RayAttempt] = {}
    failed: list[AnyTask] = []
    try:
        while True:
            # A process whose results are there may still have its cores.
            done = {key for key, item in items.items() if key not in running and item.finished()}
            ready = [item for item in waiting if done.issuperset(item.needs)]
            starting = ready[: max(0, engine.slots - len(running))]
            for place, item in enumerate(starting):
                waiting.remove(item)
                running[item.key] = engine.start(item, len(starting) - place)
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


def _followers(item: AnyTask, items: Mapping[str, AnyTask]) -> int:
    """How many cannot run before it has: those that hold up most go first."""
    direct = [other for other in items.values() if item.key in other.needs]
    return len(direct) + sum(_followers(other, items) for other in direct)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "it printed nothing"


def paces(items: Iterable[AnyTask]) -> dict[str, float]:
    """Seconds for a unit of work, by kind, of those that are finished and were measured."""
    measured = [(item.kind, seconds, item.work) for item in items if (seconds := item.seconds()) is not None]
    sums = pd.DataFrame(measured, columns=["kind", "seconds", "work"]).groupby("kind")[["seconds", "work"]].sum()
    return (sums["seconds"] / sums["work"])[sums["work"] > 0].to_dict()


def time_left(items: Sequence[AnyTask], slots: int) -> str:
    """For people: how many are to run and how long that will take, `slots` at a time, as far as their like was measured."""
    left, measured = [item for item in items if not item.finished()], paces(items)
    count = f"{len(left)} of {len(items)} to run"
    known = [item.work * measured[item.kind] for item in left if item.kind in measured]
    unknown = len(left) - len(known)
    if not left:
        return count
    if not known:
        return f"{count}, time unknown: nothing like them is measured yet"
    rest = f" and {unknown} tasks of which nothing is measured yet" if unknown else ""
    return f"{count}, about {sum(known) / slots / 60:.0f} min left{rest}"
