"""What an experiment leaves: files whose names begin alike, the numbers among them as JSON."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupre_d2.engine.results import versions, write_json
from cupre_d2.errors import ConfigError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Origin:
    """Where numbers come from: the command as typed, the commit, versions of what decides results."""

    command: str
    commit: str
    versions: dict[str, str]

    @classmethod
    def of_this_process(cls) -> "Origin":
        command = shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        return cls(command, _commit(), {"python": platform.python_version(), **versions()})


def _commit() -> str:
    """Short hash of the checkout, with + where files differ from it; "unknown" outside of one."""
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run([*git, "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def beside(results: Path, ending: str) -> Path:
    """The file of an experiment with this ending, of which `results` is what all of them begin with."""
    return results.with_name(results.name + ending)


def save(results: Path, origin: Origin, identity: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Every number, as JSON."""
    write_json(beside(results, ".json"), {**vars(origin), **identity, "runs": list(runs)})


def check_earlier(results: Path, identity: Mapping[str, Any]) -> None:
    """Raises ConfigError if a results file is there that an experiment would not only renew or add to.

    Args:
        identity: what makes two experiments the same; of its "grid", lists by key, the later may have more.
    """
    file = beside(results, ".json")
    if not file.exists():
        return
    remedy = "name another file with --results, or remove it"
    try:
        # Files of before all of it was kept lack some.
        content = json.loads(file.read_text())
        earlier, grid = {**identity, **content}, content["grid"]
        lost = {key: [value for value in grid[key] if value not in values] for key, values in identity["grid"].items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: no results of reproduce.py ({type(error).__name__}: {error}); {remedy}") from error
    for key, value in identity.items():
        if key != "grid" and earlier[key] != value:
            raise ConfigError(f"{file}: results of another {key}, {earlier[key]}; expected {value}; {remedy}")
    for key, values in lost.items():
        if values:
            raise ConfigError(f"{file}: results of another grid, with {key} {values}; {remedy}")
