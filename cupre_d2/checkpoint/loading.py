"""Loading the weights that training starts from, and writing published ones under Detectron2's names."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import get_missing_parameters_message, get_unexpected_parameters_message
from tabulate import tabulate
from torch import nn

from cupre_d2.checkpoint.packages import read_facts, read_weights
from cupre_d2.checkpoint.reading import read_checkpoint
from cupre_d2.checkpoint.sources import Source, Weights, backbone_settings, identify, misfit, shipped_config, unbuildable
from cupre_d2.errors import CheckpointError
from cupre_d2.files import write_whole

logger = logging.getLogger(__name__)

# Constants of a config, not weights: older checkpoints hold them.
CONSTANTS = re.compile(r"(^|\.)(pixel_mean|pixel_std|anchor_generator\.cell_anchors(\..*)?)$")
# Frozen batch norms have no such counter.
COUNTERS = re.compile(r"(^|\.)num_batches_tracked$")
NORM_OF_A_LAYER = re.compile(r"^(.+)\.norm\.(weight|running_mean)$")
# Under these keys checkpoints hold their weights; others are weights by themselves.
CONTAINERS = ("model", "state_dict")
# Under this key converted weights hold their `Source.arithmetic`.
ARITHMETIC = "arithmetic"
# Names that a message lists before it counts.
SHOWN = 5


@dataclass
class LoadReport:
    """What became of the keys of a checkpoint and of a model.

    Attributes:
        kind: where the weights come from, for people.
        matched: loaded.
        missing: in the model only; they keep their initialisation.
        unexpected: in the checkpoint only.
        mismatched: (key, shape in the checkpoint, shape in the model); they keep their initialisation.
        left_out: in one of the two only, and rightly: constants of the config, counters of batch norms, the classifier,
            key encoder and queue of pre-training.
        pixels: the settings that the weights' images were read with, "" where that is not known.
    """

    kind: str = ""
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    pixels: str = ""

    def table(self, shown: int = SHOWN) -> str:
        """A row for each fate: its number of tensors and the first of their names."""
        mismatched = [f"{key} {found} -> {expected}" for key, found, expected in self.mismatched]
        fates = {
            "matched": self.matched,
            "shape mismatched": mismatched,
            "missing in the file": self.missing,
            "unexpected in the file": self.unexpected,
            "left out": self.left_out,
        }
        rows = [(fate, len(keys), "\n".join(_beginning(keys, shown))) for fate, keys in fates.items()]
        return tabulate(rows, headers=["", "tensors", "names"], tablefmt="simple")


def load_initial_weights(model: nn.Module, path: str, only_prefix: str = "") -> LoadReport:
    """Loads the weights that training starts from, as far as names and shapes agree; the rest stays as initialised.

    Published weights get the model's names first, see `cupre_d2.checkpoint.sources`. Values take the dtype that they have
    in the model.

    Args:
        path: a file that `read_checkpoint` reads, with a state dict by itself or under "model" or "state_dict"; or the
            folder of a model package.
        only_prefix: load only the model's keys that begin with it; nothing else in the model changes.

    Returns:
        What was loaded and what not; it is logged too.

    Raises:
        CheckpointError: the file cannot be read, no key fits, or the weights are of another network, see `match_weights`.
    """
    state = model.state_dict()
    source, report = match_weights(model, path, only_prefix)
    # With the model's own values for the rest: Detectron2's FrozenBatchNorm2d resets statistics that are not given.
    dtypes = Counter((source.weights[key].dtype, state[key].dtype) for key in report.matched)
    state.update({key: source.weights[key] for key in report.matched})
    model.load_state_dict(state)
    _log(path, report, dtypes)
    return report


def read_source(path: str, model_keys: Iterable[str] = ()) -> Source:
    """The weights in a file, of whatever kind, under Detectron2's names.

    A "module." before every key is ignored. `pixel_mean`, `pixel_std` and anchors, which the config sets, are left out.

    Args:
        path: a file that `read_checkpoint` reads, or the folder of a model package.
        model_keys: see `identify`.

    Raises:
        CheckpointError: the file cannot be read.
    """
    content = _read_package(path) if os.path.isdir(path) else read_checkpoint(path)
    weights = _weights(path, content)
    constants = [key for key in weights if CONSTANTS.search(key)]
    source = identify({key: value for key, value in weights.items() if key not in constants}, model_keys)
    source.left_out.extend(constants)
    if isinstance(content.get(ARITHMETIC), dict):
        source.arithmetic.update(content[ARITHMETIC])
    return source


def _read_package(path: str) -> dict[str, Any]:
    """The weights of a package, and those settings of its config that leave no trace in them."""
    facts = read_facts(path)
    settings = facts["config"].get("MODEL", {}).get("RESNETS", {})
    arithmetic = {key: settings[key] for key in ("AVD", "AVG_DOWN", "STRIDE_IN_1X1") if isinstance(settings.get(key), bool)}
    return {"model": read_weights(path, facts), ARITHMETIC: arithmetic}


def match_weights(model: nn.Module, path: str, only_prefix: str = "") -> tuple[Source, LoadReport]:
    """Compares a file's weights with a model's; nothing is loaded.

    Other shapes in the heads are what other classes and anchors make, and only listed. Refused are backbones of other
    settings (deformable or not, depth, radix, where the stride lies) and necks of other widths, and layers of any part
    whose norm is another.

    Raises:
        CheckpointError: the file cannot be read, no key fits, or the weights are of another network.
    """
    state = model.state_dict()
    source = read_source(path, state)
    own = {key: value for key, value in state.items() if key.startswith(only_prefix) and not CONSTANTS.search(key)}
    weights = {key: value for key, value in source.weights.items() if key.startswith(only_prefix)}
    report = _compare(source, weights, own)
    reason = misfit(source, model) or _nothing_fits(only_prefix, report) or _other_network(report)
    if reason:
        raise CheckpointError(f"{_titled(path, source.kind)}: {reason}")
    return source, report


def _titled(path: str, kind: str) -> str:
    return f"{path} ({kind})" if kind else path


def _weights(path: str, content: Mapping[str, Any]) -> Weights:
    container = next((key for key in CONTAINERS if key in content), None)
    weights = content[container] if container else content
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: field {container} is a {type(weights).__name__}; expected a dict of weights")
    tensors = {
        str(key): value
        for key, value in weights.items()
        if isinstance(value, torch.Tensor)
        and (value.layout, value.device.type, value.is_quantized) == (torch.strided, "cpu", False)
    }
    if len(tensors) < len(weights):
        others = [str(key) for key in weights if str(key) not in tensors]
        logger.warning("%s: %d entries are no tensors and are left out: %s", path, len(others), first(others))
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _compare(source: Source, weights: Weights, own: Weights) -> LoadReport:
    report = LoadReport(source.kind, left_out=list(source.left_out), pixels=source.pixels)
    for key in [*own, *(key for key in weights if key not in own)]:
        if key in own and key in weights:
            if own[key].shape == weights[key].shape:
                report.matched.append(key)
            else:
                report.mismatched.append((key, tuple(weights[key].shape), tuple(own[key].shape)))
        elif COUNTERS.search(key):
            report.left_out.append(key)
        else:
            (report.missing if key in own else report.unexpected).append(key)
    return report


def _nothing_fits(prefix: str, report: LoadReport) -> str:
    under = f" under {prefix}" if prefix else ""
    if report.matched:
        return ""
    if report.mismatched:
        shapes = first([f"{key} {found}, expected {expected}" for key, found, expected in report.mismatched])
        return f"every key{under} has another shape than in the model; {shapes}"
    return f"no key{under} fits the model; expected {first(report.missing)}; found {first(report.unexpected)}"


def _other_network(report: LoadReport) -> str:
    necks = [f"{key} {found}, expected {expected}" for key, found, expected in report.mismatched if "backbone." in key]
    if necks:
        return f"the backbone or its neck has other shapes than in the model: {first(necks)}"
    loose = [match[1] for key in report.missing + report.unexpected if (match := NORM_OF_A_LAYER.match(key))]
    layers = sorted({layer for layer in loose if f"{layer}.weight" in report.matched})
    if layers:
        return f"trained with another norm than the model's: {first(layers)}; set the NORM of MODEL's parts as in training"
    return ""


def _log(path: str, report: LoadReport, dtypes: Counter[tuple[torch.dtype, torch.dtype]]) -> None:
    logger.info(
        "%s: %d of the model's %d tensors loaded; %d of another shape, %d missing in the file; "
        "%d in the file not used, %d left out",
        _titled(path, report.kind),
        len(report.matched),
        len(report.matched) + len(report.mismatched) + len(report.missing),
        len(report.mismatched),
        len(report.missing),
        len(report.unexpected),
        len(report.left_out),
    )
    if report.pixels:
        logger.info("%s: trained with %s", path, report.pixels)
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


def first(items: Sequence[str], shown: int = SHOWN) -> str:
    """The first of some names in one line, and how many more there are; "none" for none."""
    return ", ".join(_beginning(items, shown)).replace(", and ", " and ") or "none"


def _beginning(items: Sequence[str], shown: int) -> list[str]:
    return [*items[:shown], *([f"and {len(items) - shown} more"] if len(items) > shown else [])]


@dataclass(frozen=True)
class Conversion:
    """What a file held and became.

    Attributes:
        report: compared with the model; without one, every weight counts as matched.
        settings: of the backbone, by key below MODEL.RESNETS; what no key stands for has a name in lower case.
        fitting: a config of this repository that has such a backbone, or "".
    """

    report: LoadReport
    settings: dict[str, object]
    fitting: str


def convert_weights(source: str, out: str, model: nn.Module | None = None) -> Conversion:
    """Writes the weights in `source` to `out`, {"model": {name: tensor}, "__author__": …} as torch.save has it.

    Weights that the model has in other shapes are written too: a stage that starts from the file leaves them out anew.

    Args:
        source: a file of any kind that `identify` knows.
        out: a file that does not exist.
        model: the weights must fit it; may be on the meta device. Names are for Mask R-CNNs with FPN where it is missing.

    Raises:
        CheckpointError: `source` cannot be read, holds weights under unknown names, or does not fit; `out` exists, or
            its folder does not.
    """
    if os.path.lexists(out):
        raise CheckpointError(f"{out}: exists; give another name")
    if not Path(out).absolute().parent.is_dir():
        raise CheckpointError(f"{out}: no folder {Path(out).parent} to write to")
    if model is None:
        found = read_source(source)
        report = LoadReport(found.kind, list(found.weights), left_out=found.left_out, pixels=found.pixels)
    else:
        found, report = match_weights(model, source)
    reason = unbuildable(found)
    if not found.kind or not found.weights:
        held = first(list(found.weights))
        reason = reason or f"holds {held}; expected a detector of Detectron2, a ResNet, a ResNeSt or MoCo"
    if reason:
        raise CheckpointError(f"{source}: {reason}")
    # Without what a view's tensor shares with the rest of its storage.
    weights = {key: value.clone() for key, value in found.weights.items()}
    content = {"model": weights, "__author__": f"cupre_d2, from {found.kind}", ARITHMETIC: dict(found.arithmetic)}
    write_whole(out, lambda file: torch.save(content, file))
    return Conversion(report, backbone_settings(weights), shipped_config(weights))
