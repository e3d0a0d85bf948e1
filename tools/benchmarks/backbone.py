"""Forward and backward pass of ResNeSt-50 and -200 beside PyPI's `resnest` and `timm`, gradients to all parameters.

Times are of passes taken in turns in one process; memory is the peak of a process of its own (VmHWM) above what it held
before its model was built. On a CPU two threads; where there is a GPU also images/s and TFLOP/s there, in float32 and
under autocast. The share of the convolutions, which all three leave to PyTorch, says what is left to be faster at.
"""

import json
import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import Figure, measure, read_memory

PACKAGES = ("cupre_d2", "resnest", "timm")
SIZE, THREADS, GPU_BATCH = 512, 2, 16
# Rounds a depth.
ROUNDS = {50: 31, 200: 15}
WARM_UP = 3


class _Features(nn.Module):
    """The last feature map of one of the three implementations."""

    def __init__(self, package: str, depth: int) -> None:
        super().__init__()
        self.package = package
        if package == "cupre_d2":
            from cupre_d2.modeling.backbone.resnest import ResNeSt

            self.model: nn.Module = ResNeSt(depth, out_features=["res5"])
        elif package == "timm":
            import timm

            self.model = timm.create_model(f"resnest{depth}{'d' if depth == 50 else 'e'}")
        else:
            import resnest.torch

            self.model = getattr(resnest.torch, f"resnest{depth}")()
        # Batch norms with the statistics they have, as in fine-tuning: live ones cannot take the one value a channel that
        # a single image leaves them in split attention.
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        if self.package == "cupre_d2":
            return model(images)["res5"]
        if self.package == "timm":
            return model.forward_features(images)
        maps = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        return model.layer4(model.layer3(model.layer2(model.layer1(maps))))


def run() -> list[Figure]:
    figures = []
    for depth in ROUNDS:
        rounds = measure("backbone", f"times({depth})")
        peaks = {package: measure("backbone", f"peak({package!r}, {depth})") for package in PACKAGES}
        figures += _compared(f"ResNeSt-{depth}", rounds, peaks)
        share = measure("backbone", f"convolutions({depth})")
        figures.append(Figure(f"ResNeSt-{depth}, convolutions / our pass", share, "of the time"))
    return figures + (_on_gpu() if torch.cuda.is_available() else [])


def _compared(name: str, rounds: dict[str, list[float]], peaks: dict[str, float]) -> list[Figure]:
    """Beside the faster peer: the median of the rounds' ratios, and the ratio of the memory."""
    seconds = {package: statistics.median(taken) for package, taken in rounds.items()}
    ours, peer = PACKAGES[0], min(PACKAGES[1:], key=seconds.__getitem__)
    ratio = statistics.median(one / other for one, other in zip(rounds[ours], rounds[peer], strict=True))
    times = ", ".join(f"{package} {value:.2f} s" for package, value in seconds.items())
    sizes = ", ".join(f"{package} {value / 2**30:.2f} GiB" for package, value in peaks.items())
    return [
        Figure(f"{name}, our time / {peer}'s", ratio, f"({times})", 0.85),
        Figure(f"{name}, our peak memory / {peer}'s", peaks[ours] / peaks[peer], f"({sizes})", 1.0),
    ]


def times(depth: int) -> None:
    """Prints seconds a pass, a list of ROUNDS a package."""
    torch.set_num_threads(THREADS)
    models = {package: _Features(package, depth) for package in PACKAGES}
    images = torch.rand(1, 3, SIZE, SIZE)
    rounds: dict[str, list[float]] = {package: [] for package in PACKAGES}
    for _ in range(WARM_UP + ROUNDS[depth]):
        for package, model in models.items():
            started = time.perf_counter()
            _pass(model, images)
            rounds[package].append(time.perf_counter() - started)
    print(json.dumps({package: taken[WARM_UP:] for package, taken in rounds.items()}))


class _Convolutions(TorchDispatchMode):
    """Adds up their seconds; torch.profiler takes memory of its own, for which the passes wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        result = operation(*args, **(kwargs or {}))
        if str(operation).startswith("aten.convolution"):
            self.seconds += time.perf_counter() - started
        return result


def convolutions(depth: int) -> None:
    """Prints their share of our pass: the median of passes that time them, over that of passes that do not."""
    torch.set_num_threads(THREADS)
    model, images = _Features(PACKAGES[0], depth), torch.rand(1, 3, SIZE, SIZE)
    spent, passes = [], []
    for _ in range(WARM_UP + ROUNDS[depth]):
        with _Convolutions() as timed:
            _pass(model, images)
        spent.append(timed.seconds)
        started = time.perf_counter()
        _pass(model, images)
        passes.append(time.perf_counter() - started)
    print(statistics.median(spent[WARM_UP:]) / statistics.median(passes[WARM_UP:]))


def peak(package: str, depth: int) -> None:
    """Prints the peak memory of a few passes and the model, in bytes."""
    torch.set_num_threads(THREADS)
    before = read_memory("VmRSS")
    model = _Features(package, depth)
    images = torch.rand(1, 3, SIZE, SIZE)
    for _ in range(WARM_UP):
        _pass(model, images)
    print(read_memory("VmHWM") - before)


def _pass(model: nn.Module, images: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(images).float().square().mean().backward()


def _on_gpu() -> list[Figure]:
    torch.backends.cudnn.benchmark = True
    images = torch.rand(GPU_BATCH, 3, SIZE, SIZE, device="cuda")
    figures = []
    for depth in ROUNDS:
        for package in PACKAGES:
            model = _Features(package, depth).cuda()
            with FlopCounterMode(display=False) as counter:
                _pass(model, images)
            for name, enabled in (("float32", False), ("AMP", True)):
                with torch.autocast("cuda", enabled=enabled):
                    seconds = _seconds_on_gpu(model, images, ROUNDS[depth])
                rate = counter.get_total_flops() / seconds / 1e12
                figures.append(
                    Figure(f"ResNeSt-{depth}, {package}, {name}", GPU_BATCH / seconds, f"images/s ({rate:.1f} TFLOP/s)")
                )
    return figures


def _seconds_on_gpu(model: nn.Module, images: torch.Tensor, rounds: int) -> float:
    """A pass."""
    for _ in range(WARM_UP):
        _pass(model, images)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(rounds):
        _pass(model, images)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / rounds
