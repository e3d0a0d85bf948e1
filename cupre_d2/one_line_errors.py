"""How the tools say what a user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cupre_d2.errors import CupreError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Within, input that cannot be used ends the program with one line to stderr and exit code 2, as does a full disk."""
    try:
        yield
    except (CupreError, OSError) as error:
        # A loader's process sends its error with its stack; the last line is the error.
        lines = str(error).splitlines() or [type(error).__name__]
        line = lines[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        sys.exit(2)
