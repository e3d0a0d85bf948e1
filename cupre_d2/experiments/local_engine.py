"""Processes on this machine."""

import os

import torch

from cupre_d2.experiments.attempts import Attempt
from cupre_d2.experiments.runner import Runnable

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
GPUS = "CUDA_VISIBLE_DEVICES"


class LocalEngine:
    """This machine's cores, divided among so many processes; of its GPUs each sees the one that fewest others use."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # With the GPU that each sees.
        self._running: list[tuple[str, Attempt]] = []

    def start(self, item: Runnable) -> Attempt:
        command = item.prepare()
        threads = max(1, len(os.sched_getaffinity(0)) // self.slots)
        gpu = self._freest(visible_gpus())
        environment = {**os.environ, **thread_variables(threads), **({GPUS: gpu} if gpu else {})}
        attempt = Attempt(command, item.log, item.timing, environment)
        self._running.append((gpu, attempt))
        return attempt

    def _freest(self, gpus: list[str]) -> str:
        self._running = [(gpu, attempt) for gpu, attempt in self._running if attempt.poll() is None]
        used = [gpu for gpu, _ in self._running]
        return min(gpus, key=used.count, default="")


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = [name.strip() for name in os.environ.get(GPUS, "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def thread_variables(threads: int) -> dict[str, str]:
    """What makes a process use so many threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))
