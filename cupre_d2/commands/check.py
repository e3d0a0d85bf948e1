"""Finds what is wrong with data sets before anything trains on them.

cupre-d2 check my_cells.yaml
cupre-d2 check cells/train.json --images cells/images

A line a finding. Exit codes: 0 well, 1 warnings, 2 errors.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cupre_d2.data.builtin.entry import Role
from cupre_d2.data.curation.checking import check, check_all
from cupre_d2.data.targets import dataset_names, register_dataset_file
from cupre_d2.errors import DatasetError

YAML = (".yaml", ".yml")
HELD_OUT_LAST: tuple[Role, ...] = ("unlabeled", "train", "val", "test")


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "target",
        nargs="?",
        metavar="NAME|PATH|all",
        help="a registered data set, a YAML file of data sets, a COCO JSON or a folder; all: those of the catalogue that "
        "are there, as a table",
    )
    parser.add_argument("--datasets", type=Path, metavar="FILE", help="a YAML file of your own data sets; without NAME all")
    parser.add_argument("--images", type=Path, help="the folder that a COCO JSON's file names are relative to")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a cleaned copy to this folder and say what changed")
    parser.add_argument("--results", type=Path, metavar="FILE", help="of check all: write FILE.md and FILE.json")
    args = parser.parse_args(words)
    if args.target is None and args.datasets is None:
        parser.error("a data set is needed: its name, a YAML file, a COCO JSON or a folder")
    others = ("images", "fix") if args.target == "all" else ("results",)
    given = [f"--{option}" for option in others if getattr(args, option) is not None]
    if given:
        parser.error(f"check {args.target}: {' and '.join(given)} given, which it does not take")
    return args


def main(words: Sequence[str]) -> int:
    args = parse_args(words)
    if args.target == "all":
        return check_all(args.results)
    file = args.datasets
    if args.target and Path(args.target).suffix.lower() in YAML:
        file, args.target = Path(args.target), None
    if file is None:
        return check(args.target, args.images, args.fix)
    if args.images is not None:
        raise DatasetError(f"--images {args.images}: {file} says where the images are; expected no --images")
    target = register_dataset_file(file)
    # Of a set that is for several things, the last decides: what is held out stays so.
    roles = {name: role for role in HELD_OUT_LAST if target for name in target.roles.get(role, ())}
    return check(args.target or dataset_names(file), None, args.fix, roles)
