"""Saving checkpoints whole and loading weights safely."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import get_missing_parameters_message, get_unexpected_parameters_message
from tabulate import tabulate
from torch import nn

from cupre_d2.errors import CheckpointError

logger = logging.getLogger(__name__)

# Constants of a config, not weights: older checkpoints hold them.
CONSTANTS = re.compile(r"(^|\.)(pixel_mean|pixel_std|anchor_generator\.cell_anchors(\..*)?)$")
SHOWN = 5


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a `.pth` or `.pt` file to the CPU without running code that it may hold.

    Raises:
        CheckpointError: missing, truncated, of another format, or holding more than tensors and plain values.
    """
    check_path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # A broken file, or one of another kind, can make the parser raise almost anything.
        raise CheckpointError(f"{path}: {_why_unreadable(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a dict of weights")
    return content


def check_path(path: str) -> None:
    """Raises CheckpointError unless the path is of a local file that can be read without running code."""
    if "://" in path:
        raise CheckpointError(f"{path}: nothing is downloaded; fetch the file and give its path")
    if path.endswith(".pkl"):
        raise CheckpointError(f"{path}: .pkl files can run code when read; convert it to .pth in a sandbox")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint file")


def _why_unreadable(error: Exception) -> str:
    message = " ".join(str(error).split())
    code = re.search(r"GLOBAL (\S+)", message)
    if code:
        return (
            f"asks for {code[1]}, and files that hold more than tensors and plain values can run code when read; "
            "save its weights alone to .pth in a sandbox"
        )
    # Of PyTorch's message, which goes on to advise reading the file unsafely, only what is wrong.
    reason = message.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0][:200]
    cause = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"truncated, or not written by torch.save ({cause}); copy or make it again"


class CellCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer: writes beside the file and renames, reads with `read_checkpoint`.

    A process that is killed while it writes leaves the checkpoint before, which `last_checkpoint` still names.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's; the path is a local file's.

        Raises:
            CheckpointError: the file cannot be read.
        """
        if path:
            # Detectron2 would download before it reads, and fail on a missing file with an assertion.
            check_path(path)
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves it set after a failure, and then loads no other file.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        return content if "model" in content else {"model": content}

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<save_dir>/<name>.pth`, then names it in `last_checkpoint`; both as a whole or not at all."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        content |= kwargs
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        _write_whole(path, lambda file: torch.save(content, file))
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        _write_whole(path, lambda file: file.write(last_filename_basename.encode()))


def _write_whole(path: str, write: Callable[[IO[bytes]], Any]) -> None:
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            # Without it, a machine that loses power may have the new name but not the content.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


@dataclass
class LoadReport:
    """What became of the keys of a checkpoint and of a model.

    Attributes:
        matched: loaded.
        missing: in the model only; they keep their initialisation.
        unexpected: in the checkpoint only.
        mismatched: (key, shape in the checkpoint, shape in the model); they keep their initialisation.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)


def load_initial_weights(model: nn.Module, path: str, only_prefix: str = "") -> LoadReport:
    """Loads the weights that training starts from, as far as names and shapes agree; the rest stays as initialised.

    A "module." before every key is ignored, and so are `pixel_mean`, `pixel_std` and anchors, which the config sets.
    Values take the dtype that they have in the model.

    Args:
        path: a `.pth` file with a state dict, by itself or under "model".
        only_prefix: load only the keys that begin with it; nothing else in the model changes.

    Returns:
        What was loaded and what not; it is logged too.

    Raises:
        CheckpointError: the file cannot be read, or no key fits.
    """
    weights = _weights(path, read_checkpoint(path))
    weights = {key: value for key, value in weights.items() if key.startswith(only_prefix)}
    state = model.state_dict()
    own = {key: value for key, value in state.items() if key.startswith(only_prefix) and not CONSTANTS.search(key)}
    report = _compare(weights, own)
    if not report.matched:
        raise CheckpointError(_nothing_fits(path, only_prefix, report))
    # With the model's own values for the rest: Detectron2's FrozenBatchNorm2d resets statistics that are not given.
    state.update({key: weights[key] for key in report.matched})
    model.load_state_dict(state)
    _log(path, report, Counter((weights[key].dtype, own[key].dtype) for key in report.matched))
    return report


def _weights(path: str, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    weights = content.get("model", content)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: field model is a {type(weights).__name__}; expected a dict of weights")
    tensors = {str(key): value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    if len(tensors) < len(weights):
        others = [str(key) for key in weights if str(key) not in tensors]
        logger.warning("%s: %d entries are no tensors and are left out: %s", path, len(others), _first(others))
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {key: value for key, value in tensors.items() if not CONSTANTS.search(key)}


def _compare(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> LoadReport:
    report = LoadReport(
        missing=[key for key in own if key not in weights], unexpected=[key for key in weights if key not in own]
    )
    for key in own:
        if key not in weights:
            continue
        if own[key].shape == weights[key].shape:
            report.matched.append(key)
        else:
            report.mismatched.append((key, tuple(weights[key].shape), tuple(own[key].shape)))
    return report


def _nothing_fits(path: str, prefix: str, report: LoadReport) -> str:
    under = f" under {prefix}" if prefix else ""
    if report.mismatched:
        shapes = _first([f"{key} {found}, expected {expected}" for key, found, expected in report.mismatched])
        return f"{path}: every key{under} has another shape than in the model; {shapes}"
    return f"{path}: no key{under} fits the model; expected {_first(report.missing)}; found {_first(report.unexpected)}"


def _first(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return (", ".join(items[:SHOWN]) or "none") + more


def _log(path: str, report: LoadReport, dtypes: Counter[tuple[torch.dtype, torch.dtype]]) -> None:
    logger.info(
        "%s: %d of the model's %d tensors loaded; %d of another shape, %d missing in the file; %d in the file not used",
        path,
        len(report.matched),
        len(report.matched) + len(report.mismatched) + len(report.missing),
        len(report.mismatched),
        len(report.missing),
        len(report.unexpected),
    )
    for (found, expected), count in dtypes.items():
        if found != expected:
            logger.warning("%s: %d tensors converted from %s to %s", path, count, found, expected)
    if report.mismatched:
        table = tabulate(report.mismatched, headers=["keeps its initialisation", "shape in the file", "in the model"])
        logger.warning("%s: %d tensors of another shape:\n%s", path, len(report.mismatched), table)
    if report.missing:
        logger.warning(get_missing_parameters_message(report.missing))
    if report.unexpected:
        logger.info(get_unexpected_parameters_message(report.unexpected))
