"""Runs a pipeline again and again, killed at random moments, until it ends and enough were killed; for test_exact_resume.py.

A process of its own that imports first and then forks, so that an attempt costs no import: it never computes itself,
as threads of its own would not survive the fork.

    python killed_runs.py CONFIG OUTPUT KILLS SEED KEY VALUE ...

The runs go to OUTPUT_0, OUTPUT_1, ...: where one ends before KILLS kills, another begins.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable

from cupre_d2.engine import pipeline

LONGEST_SECONDS = 2.0
MOST_WRITES = 3


def run(config: str, output: str, opts: list[str], prepare: Callable[[], None]) -> int:
    """Forks a process that trains; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        prepare()
        log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        overrides = dict(zip(opts[0::2], opts[1::2], strict=True))
        pipeline.train(config, {"OUTPUT_DIR": output, **overrides})
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_at_write(number: int) -> Callable[[], None]:
    """For a process that is to be killed while it writes its file of that number, after the content, before the name."""

    def prepare() -> None:
        written = 0
        sync = os.fsync

        def fsync(file: int) -> None:
            nonlocal written
            written += 1
            if written == number:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(file)

        os.fsync = fsync

    return prepare


def killed(config: str, output: str, opts: list[str], most: int, rng: random.Random) -> int:
    """Until an attempt ends by itself, or `most` were killed; returns how many were."""
    for number in range(most):
        in_write = rng.random() < 0.4
        pid = run(config, output, opts, kill_at_write(rng.randint(1, MOST_WRITES)) if in_write else lambda: None)
        if not in_write:
            time.sleep(rng.uniform(0, LONGEST_SECONDS))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit(f"attempt {number} failed; see {output}.log")
            return number
    return most


def main(config: str, output: str, kills: int, seed: int, opts: list[str]) -> None:
    rng = random.Random(seed)
    total = number = 0
    while total < kills or number == 0:
        folder = f"{output}_{number}"
        total += killed(config, folder, opts, kills - total, rng)
        _, status = os.waitpid(run(config, folder, opts, lambda: None), 0)
        if status:
            sys.exit(f"the last attempt failed; see {folder}.log")
        number += 1
    print(total)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
