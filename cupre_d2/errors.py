"""The errors a user can cause, each said in one line: by the commands, in a notebook, in a program."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class CupreError(Exception):
    """Input that cannot be used; the message names what is wrong, where, and what was expected."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter print of it, in place of a stack that says nothing to who can mend the input."""
        return [f"{type(self).__name__}: {self}"]


class DatasetError(CupreError):
    """A dataset, record or image that cannot be used."""


class ConfigError(CupreError):
    """A config key, value, stage or output folder that cannot be used."""


class CheckpointError(CupreError):
    """A checkpoint that does not fit the model or cannot be read."""


class ClusteringError(CupreError, ValueError):
    """Samples or parameters that cannot be clustered; a ValueError, as scikit-learn has it."""


class ResultsError(CupreError):
    """A file of results that was left before and cannot be read."""


class TrainingError(CupreError):
    """Training that cannot go on."""


def closest(name: str, known: Iterable[str]) -> str:
    """A clause that offers the names closest to an unknown one, or all, if they are few, when none is close."""
    known = list(dict.fromkeys(known))
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not matches and len(known) > 30:
        # Nobody reads a list of hundreds.
        matches = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(matches)}?" if matches else f"known: {', '.join(sorted(known))}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For commands: within, errors that people can mend end the program with one line to stderr.

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
