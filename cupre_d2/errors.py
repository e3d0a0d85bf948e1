"""The errors a user can cause. Tools print them as one line and exit with code 2."""

import difflib
from collections.abc import Collection


class CupreError(Exception):
    """Input that cannot be used; the message names what is wrong, where, and what was expected."""


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


def closest(name: str, known: Collection[str]) -> str:
    """A clause for a message that offers the names closest to an unknown one, or all when none is close."""
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(matches)}?" if matches else f"known: {', '.join(sorted(known))}"
