"""Published weights into a file under Detectron2's names, which Detectron2 alone reads too."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cupre_d2.checkpoint.loading import ARITHMETIC, LoadReport, first, match_weights, read_source
from cupre_d2.checkpoint.sources import Source, backbone_settings, shipped_config, unbuildable
from cupre_d2.errors import CheckpointError
from cupre_d2.files import write_whole


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
    _check_out(out)
    if model is None:
        found = read_source(source)
        report = LoadReport(found.kind, list(found.weights), left_out=found.left_out, pixels=found.pixels)
    else:
        found, report = match_weights(model, source)
    if reason := unbuildable(found) or _unknown(found):
        raise CheckpointError(f"{source}: {reason}")
    # Without what a view's tensor shares with the rest of its storage.
    weights = {key: value.clone() for key, value in found.weights.items()}
    content = {"model": weights, "__author__": f"cupre_d2, from {found.kind}", ARITHMETIC: dict(found.arithmetic)}
    write_whole(out, lambda file: torch.save(content, file))
    return Conversion(report, backbone_settings(weights), shipped_config(weights))


def _unknown(source: Source) -> str:
    if source.kind and source.weights:
        return ""
    return f"holds {first(list(source.weights))}; expected a detector of Detectron2, a ResNet, a ResNeSt or MoCo"


def _check_out(out: str) -> None:
    if os.path.lexists(out):
        raise CheckpointError(f"{out}: exists; give another name")
    if not Path(out).absolute().parent.is_dir():
        raise CheckpointError(f"{out}: no folder {Path(out).parent} to write to")
