"""`cupre-d2 COMMAND ...`. Outside of the package, whose import takes seconds, so that help and typing errors cost none."""

import difflib
import sys
from importlib.metadata import PackageNotFoundError, version

COMMANDS = {
    "train": "train a pipeline, go on with it, or evaluate what it has trained",
    "predict": "find the cells in images: label images, measurements, counts, a report",
    "check": "find what is wrong with a data set, before anything trains on it",
    "prepare": "list the public data sets, put their archives in place, write few-shot subsets",
    "convert": "published weights into a checkpoint with Detectron2's names",
    "reproduce": "a paper's table in one command",
    "info": "versions, devices and data sets: what a bug report needs",
}


def usage() -> str:
    rows = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    return (
        "usage: cupre-d2 COMMAND ...\n\n"
        "Cell instance segmentation from a handful of annotated images, on Detectron2.\n\n"
        f"{rows}\n\ncupre-d2 COMMAND --help says more; cupre-d2 --version."
    )


def main() -> None:
    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first in ("-h", "--help"):
        print(usage())
    elif first == "--version":
        try:
            print(f"cupre_d2 {version('cupre_d2')}")
        except PackageNotFoundError:
            print("cupre_d2 (not installed)")
    elif first not in COMMANDS:
        close = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        print(f"cupre-d2: {first}: no such command; {hint}", file=sys.stderr)
        sys.exit(2)
    else:
        from cupre_d2.commands import run

        run()


if __name__ == "__main__":
    main()
