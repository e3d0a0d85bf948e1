"""Several processes: started by Detectron2's launch or by torchrun, on GPUs or CPUs."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from cupre_d2.engine import preemption
from cupre_d2.errors import ConfigError, TrainingError, one_line_errors

PR_SET_PDEATHSIG = 1


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def join_torchrun() -> None:
    """Makes this one of torchrun's processes, if it is none yet; its environment says which."""
    if torch.distributed.is_initialized():
        return
    end_with(os.getppid())
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def on_first_then_others(make: Callable[[bool], Any]) -> Any:
    """Calls `make(True)` in the first process, then `make(False)` in the others, which find what it left."""
    if comm.is_main_process():
        made = make(True)
        comm.synchronize()
        return made
    comm.synchronize()
    return make(False)


def launch(
    main: Callable[..., None], processes: int, machines: int, machine: int, url: str | None, args: tuple[Any, ...]
) -> None:
    """Runs `main(*args)` here, or in processes that Detectron2's launch starts: NCCL where there are GPUs, else gloo.

    When one dies the others of this machine are ended within a minute.

    Args:
        url: of the first machine; None is free to choose where there is one.

    Raises:
        SystemExit: a process ended with an exit code that says why, or by a signal that was passed on to it.
        ConfigError: several machines and no url.
        TrainingError: one of them was killed.
    """
    if machines * processes == 1:
        return main(*args)
    if machines > 1 and not url:
        raise ConfigError("--dist-url: missing; several machines need that of the first, e.g. tcp://HOST:29500")
    with preemption.forwarding() as received:
        try:
            detectron2_launch(_child, processes, machines, machine, url or "auto", (os.getpid(), main, *args))
        except ProcessExitedException as error:
            if received:
                sys.exit(preemption.RESUME_ME)
            if error.exit_code > 0:
                # It has said why.
                sys.exit(error.exit_code)
            reason = f"{error}; the others were ended. The same command goes on from the last checkpoint"
            raise TrainingError(reason) from error


def _child(parent: int, main: Callable[..., None], *args: Any) -> None:
    with preemption.watching(), one_line_errors():
        end_with(parent)
        main(*args)


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Has this process get a signal when its parent ends.

    Or children would outlive a parent that is killed, and the next run would write to their folder.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        sys.exit(1)


def parallel(network: nn.Module, device: str) -> nn.Module:
    """The network with the gradients of what trains now averaged over the processes, if there are several.

    All take the first one's weights and buffers.
    """
    if comm.get_world_size() == 1:
        return network
    share_buffers(network)
    devices = [comm.get_local_rank()] if device.startswith("cuda") else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def share_buffers(network: nn.Module) -> None:
    """Gives all processes the first one's buffers: batch-norm statistics, which training leaves to each."""
    if comm.get_world_size() > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def keep_freed_memory() -> bool:
    """Has the C library keep what training frees, for the rest of this process: a step asks for what the one before gave
    back.

    On a CPU alone, where the system would have to clear new pages in every step.

    Returns:
        Whether the C library is one that can; glibc is.
    """
    # malloc.h of glibc: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX. Nothing goes back to the system, large blocks are no
    # exception, and threads use what others have freed.
    settings = {-1: -1, -4: 0, -8: 1}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())
