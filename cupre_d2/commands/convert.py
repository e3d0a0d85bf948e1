"""Published weights into a checkpoint with Detectron2's names: what training does with MODEL.WEIGHTS, ahead of time.

SOURCE is a .pth or .pkl file of detectron2-ResNeSt or Detectron2, of an ImageNet ResNeSt (resnest, timm), of torchvision's
ResNets, of MoCo v1 or v2, or of a stage of this plugin; which one, its keys tell. With --config-file the weights are
compared with that config's model, and refused where the backbone is another.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from detectron2.modeling import build_model
from torch import nn

from cupre_d2.checkpoint.loading import SHOWN, Conversion, convert_weights
from cupre_d2.engine.stages import load_stages


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", metavar="OUT", help="the .pth file to write; must not exist")
    parser.add_argument("--config-file", metavar="X", help="the config to be trained; of a pipeline, its first stage counts")
    parser.add_argument("--datasets", metavar="FILE", help="a YAML file of your own data sets, where the config needs it")
    parser.add_argument("--all", action="store_true", help="list every tensor's name, not the first few")
    return parser.parse_args(words)


def build(config_file: str, datasets: str | None) -> nn.Module:
    """The config's model without values, in no time and no memory."""
    own = ["DATASETS.FILE", datasets] if datasets else []
    _, stages = load_stages(config_file, ["MODEL.DEVICE", "meta", *own])
    with torch.device("meta"):
        return build_model(stages[0].cfg)


def describe(conversion: Conversion, shown: int) -> str:
    report = conversion.report
    settings = ", ".join(f"{key} {value}" for key, value in conversion.settings.items())
    lines = [f"{report.kind}: {settings}" if settings else report.kind]
    if conversion.fitting:
        lines.append(f"backbone of {conversion.fitting}")
    if report.pixels:
        lines.append(f"trained with {report.pixels}")
    return "\n".join([*lines, "", report.table(shown), ""])


def main(words: Sequence[str]) -> None:
    args = parse_args(words)
    model = build(args.config_file, args.datasets) if args.config_file else None
    conversion = convert_weights(args.source, args.out, model)
    print(describe(conversion, sys.maxsize if args.all else SHOWN))
    print(f"written: {args.out}")
