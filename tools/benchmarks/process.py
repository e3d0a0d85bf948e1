"""A measurement in a fresh process, which prints it as JSON; and what the kernel says of a process' memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


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


def memory(field: str, file: str = "/proc/self/status") -> int:
    """A field of one of the kernel's files of memory sizes, e.g. VmHWM or Pss; bytes."""
    (line,) = [line for line in Path(file).read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024
