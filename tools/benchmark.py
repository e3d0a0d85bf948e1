#!/usr/bin/env python
"""Measures one thing beside its peer in the same run: `python tools/benchmark.py data --check`.

Each module of tools/benchmarks is a benchmark. A line a figure; with --check the figure closest to its bar, or
furthest below it, comes last and decides: exit code 1 if it misses.
"""

import argparse
import importlib
import pkgutil
import sys

import benchmarks

from cupre_d2.errors import one_line_errors

NAMES = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--check", action="store_true", help="compare with the bars; exit code 1 if one is missed")
    args = parser.parse_args()
    figures = importlib.import_module(f"benchmarks.{args.name}").run()
    deciding = min(figures, key=lambda figure: figure.margin)
    for figure in figures:
        if not args.check or figure is not deciding:
            print(figure)
    if args.check:
        print(deciding)
    return int(args.check and not deciding.holds)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
