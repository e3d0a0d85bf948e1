import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cupre_d2.commands import train
from cupre_d2.config import default_config
from cupre_d2.engine import distributed, pipeline
from cupre_d2.engine.stages import Stage

# The function alone: importing the package takes longer than the test.
SCRIPT = """
import ctypes, resource
{function}
if {kept}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def block():
    memory = ctypes.c_void_p(libc.malloc(64 * 2**20))
    ctypes.memset(memory, 1, 64 * 2**20)
    libc.free(memory)

block()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    block()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kept: bool) -> int:
    script = SCRIPT.format(kept=kept, function=inspect.getsource(distributed.keep_freed_memory))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_freed_memory_is_used_again() -> None:
    """Without, each block is five times taken from the system anew: 16,384 pages of 4 KiB, fewer of larger ones."""
    assert page_faults(kept=True) < 20 < page_faults(kept=False)


def test_a_c_library_without_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not distributed.keep_freed_memory()


@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda", False)])
def test_train_net_keeps_it_on_a_cpu(device: str, kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(pipeline, "log_to", lambda folder: None)
    monkeypatch.setattr(pipeline, "run", lambda job: None)
    cfg = default_config()
    cfg.MODEL.DEVICE = device
    train.work(pipeline.Job(str(tmp_path), [Stage("one", cfg)], [], {}))
    assert bool(called) == kept
