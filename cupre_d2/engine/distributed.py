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
from cupre_d2.errors import TrainingError

PR_SET_PDEATHSIG = 1


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def join_torchrun() -> None:
    """Makes this one of torchrun's processes; its environment says which."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def on_first_then_others(make: Callable[[bool], Any]) -> Any:
    """Calls `make(True)` in the first process, then `make(False)` in the others, which find what it left."""
    if comm.is_main_process():
        made = make(True)
        comm.synchronize()
        return made
    comm.synchronize()
    return make(False)


def launch(main: Callable[..., None], processes: int, machines: int, machine: int, url: str, args: tuple[Any, ...]) -> None:
    """Runs `main(*args)` here, or in processes that Detectron2's launch starts: NCCL where there are GPUs, else gloo.

    When one dies the others are ended within a minute.

    Raises:
        SystemExit: with RESUME_ME, where the processes left with it.
        TrainingError: one of them was killed.
    """
    if machines * processes == 1:
        return main(*args)
    try:
        with preemption.forwarding():
            detectron2_launch(_child, processes, machines, machine, url, (os.getpid(), main, *args))
    except ProcessExitedException as error:
        if error.exit_code == preemption.RESUME_ME:
            sys.exit(preemption.RESUME_ME)
        raise TrainingError(
            f"{error}; the other processes were ended. The same command goes on from the last checkpoint"
        ) from error


def _child(parent: int, main: Callable[..., None], *args: Any) -> None:
    if sys.platform == "linux":
        # Or children would outlive a parent that is killed, and the next run would write to their folder.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    main(*args)


def parallel(network: nn.Module, device: str) -> nn.Module:
    """The network with the gradients of what trains now averaged over the processes, if there are several."""
    if comm.get_world_size() == 1:
        return network
    devices = [comm.get_local_rank()] if device.startswith("cuda") else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def share_buffers(network: nn.Module) -> None:
    """Gives all processes the first one's buffers: batch-norm statistics, which training leaves to each."""
    if comm.get_world_size() > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)
