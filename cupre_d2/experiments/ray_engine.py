"""Processes spread over a Ray cluster.

Every machine must have this checkout, its environment and the data at the same paths, and see the output folder at the
same path too: a shared file system. Ray itself moves no file.
"""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupre_d2.errors import ConfigError
from cupre_d2.experiments.engines import Attempt, thread_variables
from cupre_d2.experiments.runner import POLL_SECONDS, Runnable

# A network file system may show what another machine wrote that much later, in seconds.
PATIENCE = 90.0


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

    Args:
        jobs: processes side by side on a machine.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
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

    def start(self, item: Runnable, together: int) -> "RayAttempt":
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
    gpus = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
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

    def __init__(self, ray: Any, reference: Any, item: Runnable) -> None:
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
