"""Where an experiment's numbers come from and where they go: files whose names begin alike."""

import json
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cupre_d2.engine.results import checkout, versions, write_json
from cupre_d2.errors import ConfigError
from cupre_d2.files import write_text


@dataclass(frozen=True)
class Origin:
    """Where numbers come from: the command as typed, the commit, versions of what decides results.

    Attributes:
        commit: of this process; see `checkout`.
        commits: of those that trained and evaluated, which may be others.
    """

    command: str
    commit: str
    versions: dict[str, str]
    commits: tuple[str, ...] = ()

    @classmethod
    def of_this_process(cls) -> "Origin":
        script = Path(sys.argv[0])
        if script.name == "__main__.py":
            start = ["python", "-m", script.parent.name]
        else:
            start = ["python", str(script)] if script.suffix else [script.name]
        return cls(shlex.join([*start, *sys.argv[1:]]), checkout(), {"python": platform.python_version(), **versions()})

    def of_runs(self, commits: Iterable[str]) -> "Origin":
        """With the commits of runs, each once."""
        return replace(self, commits=tuple(dict.fromkeys(commits)))

    @property
    def trained_with(self) -> str:
        """Commits, for people."""
        return ", ".join(self.commits or (self.commit,))


def beside(results: Path, ending: str) -> Path:
    """The file of an experiment with this ending, of which `results` is what all of them begin with."""
    return results.with_name(results.name + ending)


def write_numbers(
    results: Path, origin: Origin, identity: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], frame: pd.DataFrame
) -> None:
    """Every number: RESULTS.json, an entry a run, and RESULTS.csv, a row a run, data set, task and metric."""
    write_json(beside(results, ".json"), {**vars(origin), **identity, "runs": entries})
    write_text(beside(results, ".csv"), frame.to_csv(index=False))


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
        content = json.loads(file.read_text())
        grid = content["grid"]
        # Files of before there were two tables.
        earlier = {"table": "cupre"} | content
        others = [key for key, value in identity.items() if key != "grid" and earlier.get(key, value) != value]
        lost = {} if others else {key: [v for v in grid[key] if v not in values] for key, values in identity["grid"].items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: no results of reproduce.py ({type(error).__name__}: {error}); {remedy}") from error
    for key in others:
        raise ConfigError(f"{file}: results of another {key}, {earlier[key]}; expected {identity[key]}; {remedy}")
    for key, values in lost.items():
        if values:
            raise ConfigError(f"{file}: results of another grid, with {key} {values}; {remedy}")
