"""Training steps on a CPU with memory kept by `keep_freed_memory`, as tools/train_net.py has it, and without.

A step is the forward and backward pass of the mini pipelines' detector and its optimizer's step. Processes of both kinds
take turns; memory is their peak (VmHWM).
"""

import json
import statistics
import time
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage

from benchmarks import Figure, measure, read_memory
from benchmarks.memory import images

CONFIG = str(Path(__file__).parents[2] / "configs/mini/stages/coco_pretrain.yaml")
# Pixels: images of a batch differ, as they do in training.
SIZES = ((192, 256), (192, 192), (192, 320), (192, 224))
BATCH, WARM_UP, STEPS, PROCESSES = 4, 4, 24, 4


def run() -> list[Figure]:
    # By whether memory is kept.
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for _ in range(PROCESSES):
        for kept, measured in found.items():
            measured.append(measure("allocator", f"steps({kept})"))
    seconds, peaks = (
        {kept: statistics.median(one[what] for one in measured) for kept, measured in found.items()}
        for what in ("seconds", "peak")
    )
    times = f"({seconds[True]:.3f} s, {seconds[False]:.3f} s)"
    sizes = f"({peaks[True] / 2**30:.2f} GiB, {peaks[False] / 2**30:.2f} GiB)"
    return [
        Figure("training step, memory kept / given back", seconds[True] / seconds[False], times, 0.97),
        Figure("peak memory, kept / given back", peaks[True] / peaks[False], sizes, 1.2),
    ]


def steps(kept: bool) -> None:
    """Prints the median seconds a step, and the peak memory in bytes."""
    from cupre_d2.engine.distributed import keep_freed_memory
    from cupre_d2.engine.single_phase import build_network
    from cupre_d2.engine.stages import load_stages
    from cupre_d2.solver.build import build_optimizer

    if kept:
        keep_freed_memory()
    _, (stage,) = load_stages(CONFIG, ("MODEL.DEVICE", "cpu"))
    model = build_network(stage.cfg).train()
    optimizer = build_optimizer(stage.cfg, model)
    torch.manual_seed(0)
    batches = [[images(1, *SIZES[(step + item) % len(SIZES)])[0] for item in range(BATCH)] for step in range(len(SIZES))]
    taken = []
    with EventStorage():
        for step in range(WARM_UP + STEPS):
            started = time.perf_counter()
            loss = sum(model(batches[step % len(batches)]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            taken.append(time.perf_counter() - started)
    print(json.dumps({"seconds": statistics.median(taken[WARM_UP:]), "peak": read_memory("VmHWM")}))
