"""The commands: a module each, which parses arguments and calls the package.

Scripts start them by `run`: `cupre-d2`, those of tools/, and a project's own, which imports what it registers first.
"""

import importlib
import os
import sys

from cupre_d2.engine import preemption
from cupre_d2.errors import one_line_errors
from cupre_d2_cli import COMMANDS

# The script that called `run`, as a command line.
_entry: list[str] = []


def run(default: str = "") -> None:
    """Runs a command with the arguments of this process, and ends the process with the command's exit code.

    Args:
        default: the command, unless the first argument is the name of one.
    """
    words = sys.argv[1:]
    named = bool(words) and words[0] in COMMANDS
    script = os.path.abspath(sys.argv[0])
    if os.path.basename(script) != "__main__.py":
        _entry[:] = [sys.executable, script]
    module = importlib.import_module(f"cupre_d2.commands.{words[0] if named else default}")
    # By default a cluster's signals would leave processes behind, beside which the next run would start them again.
    with preemption.watching(), one_line_errors():
        sys.exit(module.main(words[1:] if named else words))


def entry() -> list[str]:
    """The command line that starts a process as this one was started, with all that its script registers; the name of a
    command comes next. Of a process that no command started, a notebook or a test, it is this package's own.
    """
    return _entry or [sys.executable, "-m", "cupre_d2"]
