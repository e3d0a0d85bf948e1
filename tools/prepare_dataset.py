#!/usr/bin/env python
"""Data sets: what is there, putting archives in their place, checking, few-shot subsets.

prepare_dataset.py list                      what is below $DETECTRON2_DATASETS, what is missing, what to do
prepare_dataset.py NAME RAW_DIR              put the publisher's archives in RAW_DIR where NAME is read
prepare_dataset.py check NAME|PATH           find what is wrong with a data set; exit code 0 well, 1 warnings, 2 errors
prepare_dataset.py check all                 the same for every data set of the catalogue that is there, as a table
prepare_dataset.py subset NAME_5pct OUT.json write a few-shot subset as a COCO file of its own
"""

import argparse
import sys
from pathlib import Path

from cupre_d2.data import catalog, prepare
from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.check import check
from cupre_d2.data.check.survey import survey
from cupre_d2.data.export import write_subset
from cupre_d2.data.overview import overview
from cupre_d2.errors import one_line_errors

COMMANDS = ("list", "check", "subset", "place")


def parse_args(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | check | subset | NAME")
    commands.add_parser("list")
    place = commands.add_parser("place", usage="prepare_dataset.py NAME RAW_DIR")
    place.add_argument("name", choices=[dataset.name for dataset in CATALOGUE], metavar="NAME")
    place.add_argument("raw", type=Path, metavar="RAW_DIR")
    checked = commands.add_parser("check")
    checked.add_argument(
        "target", metavar="NAME|PATH|all", help="a data set, one of its registered names, a COCO JSON or a folder"
    )
    checked.add_argument("--images", type=Path, help="the folder that a COCO JSON's file names are relative to")
    checked.add_argument("--fix", type=Path, metavar="OUT", help="write a cleaned copy to this folder and say what changed")
    checked.add_argument("--results", type=Path, metavar="FILE", help="of check all: write FILE.md and FILE.json")
    subset = commands.add_parser("subset")
    subset.add_argument("name", metavar="NAME_5pct", help="NAME_5pct_seed3 is another draw")
    subset.add_argument("out", type=Path, metavar="OUT.json")
    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        arguments = ["place", *arguments]
    args = parser.parse_args(arguments)
    if args.command == "check":
        others = ("images", "fix") if args.target == "all" else ("results",)
        given = [f"--{option}" for option in others if getattr(args, option) is not None]
        if given:
            checked.error(f"check {args.target}: {' and '.join(given)} given, which it does not take")
    return args


def main(args: argparse.Namespace) -> int:
    root = catalog.datasets_root()
    if args.command == "list":
        print(overview(root))
    elif args.command == "place":
        dataset = next(dataset for dataset in CATALOGUE if dataset.name == args.name)
        for line in prepare.prepare(dataset, args.raw, root):
            print(line)
    elif args.command == "subset":
        print(write_subset(args.name, args.out))
    elif args.target == "all":
        return survey(args.results)
    else:
        return check(args.target, args.images, args.fix)
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse_args(sys.argv[1:])))
