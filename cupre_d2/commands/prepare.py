"""Public data sets: what is there, putting archives in their place, few-shot subsets.

list                      what is below $DETECTRON2_DATASETS, what is missing, what to do
NAME RAW_DIR              put the publisher's archives in RAW_DIR where NAME is read
subset NAME_5pct OUT.json write a few-shot subset as a COCO file of its own

cupre-d2 check finds what is wrong with a data set.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cupre_d2.data import catalog
from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.curation.export import write_subset
from cupre_d2.data.curation.placing import overview, prepare
from cupre_d2.data.targets import register_dataset_file

COMMANDS = ("list", "subset", "place")


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="cupre-d2 prepare list|NAME|subset ...",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | subset | NAME")
    commands.add_parser("list")
    place = commands.add_parser("place", usage="cupre-d2 prepare NAME RAW_DIR")
    place.add_argument("name", choices=[dataset.name for dataset in CATALOGUE], metavar="NAME")
    place.add_argument("raw", type=Path, metavar="RAW_DIR")
    subset = commands.add_parser("subset")
    subset.add_argument("name", metavar="NAME_5pct", help="NAME_5pct_seed3 is another draw")
    subset.add_argument("out", type=Path, metavar="OUT.json")
    subset.add_argument("--datasets", type=Path, metavar="FILE", help="a YAML file of your own data sets")
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        words = ["place", *words]
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    args = parse_args(words)
    root = catalog.datasets_root()
    if args.command == "list":
        print(overview(root))
    elif args.command == "place":
        dataset = next(dataset for dataset in CATALOGUE if dataset.name == args.name)
        for line in prepare(dataset, args.raw.expanduser(), root):
            print(line)
    else:
        if args.datasets:
            register_dataset_file(args.datasets)
        print(write_subset(args.name, args.out))
