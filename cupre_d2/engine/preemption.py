"""Ends a run that a cluster takes back so that the same command goes on from there."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from detectron2.utils import comm

logger = logging.getLogger(__name__)

# What clusters send before they kill: SIGTERM, and SIGUSR1 by SLURM's --signal=USR1@SECONDS.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# sysexits.h: a temporary failure, try again.
RESUME_ME = 75


class Preempted(SystemExit):
    """Leaves with exit code RESUME_ME."""

    def __init__(self) -> None:
        super().__init__(RESUME_ME)


class _Notice:
    """Whether a signal came, in this process."""

    def __init__(self) -> None:
        self.received = False
        # What is said of a signal that has to wait; "" where it does not.
        self.deferred = ""

    def handle(self, number: int, frame: Any) -> None:
        self.received = True
        if not self.deferred:
            # Between training runs, all that is worth keeping is written.
            raise Preempted
        logger.warning(f"{signal.Signals(number).name}: {self.deferred}")


_notice = _Notice()


@contextmanager
def watching() -> Iterator[None]:
    """Within, the signals end this process with exit code RESUME_ME; where training runs, after its next checkpoint.

    Does nothing within itself, and outside of the main thread, where Python takes no signals.
    """
    watched = signal.getsignal(signal.SIGTERM) == _notice.handle
    if watched or threading.current_thread() is not threading.main_thread():
        yield
        return
    _notice.received = False
    before = {number: signal.signal(number, _notice.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # Whoever goes on in this process after all, goes on.
        _notice.received = False


@contextmanager
def deferring(message: str) -> Iterator[None]:
    """Within, a signal is only noted: `requested` tells of it, and the end of this context ends the process.

    Args:
        message: for people, when a signal comes.
    """
    _notice.deferred = message
    try:
        yield
    finally:
        _notice.deferred = ""
    if _notice.received:
        raise Preempted


def requested(device: str) -> bool:
    """Whether one of the processes got a signal; all are to ask, after the same step.

    Args:
        device: MODEL.DEVICE.
    """
    if comm.get_world_size() == 1:
        return _notice.received
    received = torch.tensor(float(_notice.received), device=device)
    torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
    return bool(received)


@contextmanager
def forwarding() -> Iterator[list[int]]:
    """Within, this process passes the signals on to its children and stays until they have ended; yields those received."""
    received: list[int] = []

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        for child in torch.multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
