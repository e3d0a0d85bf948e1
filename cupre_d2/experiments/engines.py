"""Where processes run, by the names that command lines give: one try at a task each, on this machine or by Ray."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from cupre_d2.engine.distributed import end_with
from cupre_d2.engine.results import write_json
from cupre_d2.experiments.runner import Engine, Runnable
from cupre_d2.experiments.tasks import read_seconds

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
GPUS = "CUDA_VISIBLE_DEVICES"


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


class LocalEngine:
    """This machine's cores, divided among what runs; of its GPUs each process sees the one that fewest others use.

    Args:
        slots: the most processes side by side.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # With the cores and the GPU of each.
        self._running: list[tuple[int, str, Attempt]] = []

    def start(self, item: Runnable, together: int) -> Attempt:
        """With its share of the cores that nothing uses, so that what nothing can run beside has all of them."""
        command = item.prepare()
        self._running = [one for one in self._running if one[-1].poll() is None]
        free = len(os.sched_getaffinity(0)) - sum(cores for cores, _, _ in self._running)
        threads = max(1, free // together)
        gpu = min(visible_gpus(), key=[used for _, used, _ in self._running].count, default="")
        environment = {**os.environ, **thread_variables(threads), **({GPUS: gpu} if gpu else {})}
        attempt = Attempt(command, item.log, item.timing, environment)
        self._running.append((threads, gpu, attempt))
        return attempt


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def thread_variables(threads: int) -> dict[str, str]:
    """What makes a process use so many threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def _ray(jobs: int) -> Engine:
    from cupre_d2.experiments.ray_engine import RayEngine

    return RayEngine(jobs)


# Each from the number of processes side by side on a machine.
ENGINES: dict[str, Callable[[int], Engine]] = {"local": LocalEngine, "ray": _ray}
