"""How the tools say what a user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cupre_d2.errors import CupreError, TrainingError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Within, errors that people can mend end the program with one line to stderr.

    The exit code is 2 for input that cannot be used and a disk that cannot be written, 1 for training that could not go on.
    """
    try:
        yield
    except (CupreError, OSError) as error:
        # A loader's process sends its error with its stack; the last line is the error.
        lines = str(error).splitlines() or [type(error).__name__]
        line = lines[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, TrainingError) else 2)
