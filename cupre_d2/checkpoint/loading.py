"""Saving checkpoints whole and loading weights safely."""

import logging
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import get_missing_parameters_message, get_unexpected_parameters_message
from tabulate import tabulate
from torch import nn

from cupre_d2.errors import CheckpointError

logger = logging.getLogger(__name__)

# Constants of a config, not weights: older checkpoints hold them.
NOT_WEIGHTS = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors")
SHOWN = 5


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a `.pth` file to the CPU without running code that it may hold.

    Raises:
        CheckpointError: missing, truncated, of another format, or holding more than tensors and plain values.
    """
    if "://" in path:
        raise CheckpointError(f"{path}: nothing is downloaded; fetch the file and give its path")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.endswith(".pkl"):
        raise CheckpointError(f"{path}: a .pkl file can run code when it is read; convert it to .pth in a sandbox first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "holds more than tensors and plain values" if "weights_only" in str(error) else "is not a checkpoint"
        raise CheckpointError(f"{path}: {reason}; expected a file that torch.load(weights_only=True) reads") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: truncated or not a checkpoint ({_one_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a dict of weights")
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class CellCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer: writes beside the file and renames, reads with `read_checkpoint`.

    A process that is killed while it writes leaves the checkpoint before, which `last_checkpoint` still names.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict(), **kwargs}
        content |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        torch.save(content, f"{path}.partial")
        os.replace(f"{path}.partial", path)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{path}.partial", "w") as file:
            file.write(last_filename_basename)
        os.replace(f"{path}.partial", path)


@dataclass
class LoadReport:
    """What became of the keys of a checkpoint and of a model; `mismatched` holds (key, in the file, in the model)."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)


def load_initial_weights(model: nn.Module, path: str, only_prefix: str = "") -> LoadReport:
    """Loads the weights that training starts from, as far as names and shapes agree; the rest stays as initialised.

    Args:
        path: a `.pth` file with a state dict, by itself or under "model".
        only_prefix: load only the keys that begin with it.

    Returns:
        What was loaded and what not; it is logged too.

    Raises:
        CheckpointError: the file cannot be read, or no key fits.
    """
    weights = _weights(path, read_checkpoint(path))
    own = {key: value for key, value in model.state_dict().items() if key.startswith(only_prefix) and _is_weight(key)}
    weights = {key: value for key, value in weights.items() if key.startswith(only_prefix)}
    report = LoadReport(
        missing=sorted(own.keys() - weights.keys()), unexpected=sorted(weights.keys() - own.keys())
    )
    for key in sorted(own.keys() & weights.keys()):
        if own[key].shape == weights[key].shape:
            report.matched.append(key)
        else:
            report.mismatched.append((key, tuple(weights[key].shape), tuple(own[key].shape)))
    if not report.matched:
        found = ", ".join(list(weights)[:SHOWN]) or "none"
        raise CheckpointError(f"{path}: no key fits the model; expected {', '.join(list(own)[:SHOWN])}, …; found {found}, …")
    model.load_state_dict({key: weights[key] for key in report.matched}, strict=False)
    _log(path, report)
    return report


def _weights(path: str, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights = content.get("model", content)
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: field model: {type(weights).__name__}; expected a dict of weights")
    weights = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    if weights and all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if _is_weight(key)}


def _is_weight(key: str) -> bool:
    return not any(name in key for name in NOT_WEIGHTS)


def _log(path: str, report: LoadReport) -> None:
    logger.info(
        f"{path}: {len(report.matched)} of {len(report.matched) + len(report.missing) + len(report.mismatched)} weights "
        f"loaded; {len(report.mismatched)} of another shape, {len(report.missing)} missing, "
        f"{len(report.unexpected)} not used"
    )
    if report.mismatched:
        rows = tabulate(report.mismatched, headers=["of another shape, newly initialised", "in the file", "in the model"])
        logger.warning(f"{path}:\n{rows}")
    if report.missing:
        logger.warning(get_missing_parameters_message(report.missing))
    if report.unexpected:
        logger.info(get_unexpected_parameters_message(report.unexpected))
