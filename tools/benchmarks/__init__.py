"""Benchmarks, a module each, whose `run` returns figures; here is what they share."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark.

    Attributes:
        name: what was measured.
        value: the number, in `unit`.
        bar: what the issue asks for, if it asks for anything.
        better: whether the value shall be at most or at least the bar.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    better: Literal["at most", "at least"] = "at most"

    @property
    def holds(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.better == "at most" else self.value >= self.bar)

    @property
    def margin(self) -> float:
        """How far the value is from its bar, as a factor: below 1 where it misses; infinite without a bar."""
        if self.bar is None:
            return float("inf")
        low, high = (self.value, self.bar) if self.better == "at most" else (self.bar, self.value)
        return high / low if low > 0 else float("inf")

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"   (bar: {self.better} {self.bar:g}: {'holds' if self.holds else 'MISSED'})"
        return f"{self.name}: {self.value:.3g} {self.unit}{bar}"


def measure(module: str, call: str, **environment: str) -> Any:
    """What a function of benchmarks.`module` prints on its last line; raises CalledProcessError where it fails.

    Args:
        call: Python, e.g. "child('ours')".
        environment: variables beside this process's own.
    """
    command = [sys.executable, "-W", "ignore", "-c", f"from benchmarks import {module}; {module}.{call}"]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def read_memory(field: str, file: str = "/proc/self/status") -> int:
    """A field of one of the kernel's files of memory sizes, e.g. VmHWM or Pss; bytes."""
    (line,) = [line for line in Path(file).read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024
