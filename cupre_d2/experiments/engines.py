"""Where processes run, by the names that command lines give: one try at a task each, on this machine or by Ray.

Every machine of a Ray cluster must have this checkout, its environment and the data at the same paths, and see the output
folder at the same path too: a shared file system. Ray itself moves no file.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cupre_d2.engine.distributed import end_with
from cupre_d2.engine.results import write_json
from cupre_d2.errors import ConfigError
from cupre_d2.experiments.tasks import AnyTask, read_seconds

POLL_SECONDS = 1.0
# A network file system may show what another machine wrote that much later, in seconds.
PATIENCE = 90.0
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
    """This machine's cores, divided among at most `slots` processes; of its GPUs each sees that which fewest others use."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # With the cores and the GPU of each.
        self._running: list[tuple[int, str, Attempt]] = []

    def start(self, item: AnyTask, together: int) -> Attempt:
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


@dataclass(frozen=True)
class Share:
    """What a process gets of a machine."""

    cpus: int
    gpus: float

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many processes a machine has room for."""
        by_cpu = int(resources.get("CPU", 0)) // self.cpus
        # Shares of a GPU are a bit less than what they were divided into.
        return min(by_cpu, int(resources.get("GPU", 0) / self.gpus + 1e-6)) if self.gpus else by_cpu


def share(machines: Sequence[Mapping[str, float]], jobs: int) -> Share:
    """The smallest machine's cores and GPUs divided by `jobs`, at least a core and at most a GPU.

    Machines without a GPU get no process if another has one.

    >>> share([{"CPU": 16.0}, {"CPU": 64.0}], jobs=4)
    Share(cpus=4, gpus=0)
    >>> share([{"CPU": 32.0, "GPU": 8.0}, {"CPU": 4.0}], jobs=8), share([{"CPU": 32.0, "GPU": 1.0}], jobs=2)
    (Share(cpus=4, gpus=1), Share(cpus=16, gpus=0.5))
    """
    used = [machine for machine in machines if machine.get("GPU", 0) >= 1] or machines
    cpus = max(1, int(min(machine["CPU"] for machine in used)) // jobs)
    gpus = min(machine.get("GPU", 0) for machine in used)
    # Ray counts a GPU in ten thousandths.
    return Share(cpus, min(1, int(10_000 * gpus / jobs) / 10_000) if gpus else 0)


class RayEngine:
    """The cluster that RAY_ADDRESS names (RAY_AUTH_MODE=token if it asks for one); without it, Ray is started here.

    RAY_ADDRESS=auto is the cluster that runs on this machine. Whether processes use a GPU is decided here too: start it
    where there is one.

    Takes the number of processes side by side on a machine; raises ConfigError where Ray is not installed, or no cluster
    answers.
    """

    def __init__(self, jobs: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray: Ray is not installed; pip install -e '.[ray]'") from error
        self._ray: Any = ray
        # Not Ray's own default: it goes on trying for ten minutes where a cluster ran on this machine once.
        address = os.environ.get("RAY_ADDRESS", "local")
        _check_answers(address)
        try:
            ray.init(address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--engine ray: no cluster ({' '.join(str(error).split())})") from error
        self._jobs = jobs

    def _machines(self) -> list[dict[str, float]]:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [machine for machine in machines if machine.get("CPU", 0) >= 1]

    @property
    def slots(self) -> int:
        """Counted anew each time: machines come and go."""
        machines = self._machines()
        part = share(machines, self._jobs) if machines else None
        return max(1, sum(min(self._jobs, part.fits(machine)) for machine in machines)) if part else 1

    def start(self, item: AnyTask, together: int) -> "RayAttempt":
        part = share(self._machines(), self._jobs)
        # A machine that is lost may only be out of reach, and its process go on: to try again is for people to decide.
        remote = self._ray.remote(num_cpus=part.cpus, num_gpus=part.gpus, max_retries=0)(execute)
        variables = {**os.environ, **thread_variables(part.cpus)}
        reference = remote.remote(item.prepare(), item.log.absolute(), item.timing.absolute(), variables, Path.cwd())
        return RayAttempt(self._ray, reference, item)


def _check_answers(address: str) -> None:
    """Raises ConfigError if nothing answers at host:port; other forms of address are Ray's to check."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"--engine ray: no cluster at RAY_ADDRESS={address} ({error})") from error


def execute(command: Sequence[str], log: Path, timing: Path, environment: Mapping[str, str], folder: Path) -> int:
    """On a machine of the cluster: runs a process to its end; returns its exit code. Ends it when it is cancelled itself."""
    # Which GPUs are the process's, Ray says here.
    gpus = {name: os.environ[name] for name in (GPUS,) if name in os.environ}
    attempt = Attempt(command, log, timing, {**environment, **gpus}, folder)
    try:
        while (code := attempt.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code
    finally:
        attempt.terminate()
        attempt.wait()


class RayAttempt:
    """A process somewhere in the cluster, or waiting for room."""

    def __init__(self, ray: Any, reference: Any, item: AnyTask) -> None:
        self._ray = ray
        self._reference = reference
        self._item = item
        self._ended: float | None = None

    def poll(self) -> int | None:
        """The exit code; None while it runs, or its results may still come into sight. Ray's own errors go to the log."""
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            code = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            with self._item.log.open("a") as log:
                log.write(f"Ray: {' '.join(str(error).split())}\n")
            return 1
        self._ended = self._ended or time.monotonic()
        if code == 0 and not self._item.finished() and time.monotonic() < self._ended + PATIENCE:
            return None
        return code

    def terminate(self) -> None:
        self._ray.cancel(self._reference)

    def wait(self) -> None:
        """Until it has ended: an evaluation is finished before."""
        self._ray.wait([self._reference])


Engine: TypeAlias = LocalEngine | RayEngine

# Each from the number of processes side by side on a machine.
ENGINES: dict[str, Callable[[int], Engine]] = {"local": LocalEngine, "ray": RayEngine}
