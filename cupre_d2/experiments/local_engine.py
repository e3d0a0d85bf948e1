"""Processes on this machine."""

import os
from dataclasses import dataclass

from cupre_d2.experiments.attempts import Attempt
from cupre_d2.experiments.runner import Runnable

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class LocalEngine:
    """This machine's cores, divided among so many processes."""

    slots: int

    def start(self, item: Runnable) -> Attempt:
        command = item.prepare()
        threads = max(1, len(os.sched_getaffinity(0)) // self.slots)
        return Attempt(command, item.log, item.timing, {**os.environ, **thread_variables(threads)})


def thread_variables(threads: int) -> dict[str, str]:
    """What makes a process use so many threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))
