"""What an experiment leaves: files whose names begin alike, the numbers among them as JSON."""

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from cupre_d2.engine.results import checkout, versions, write_json
from cupre_d2.errors import ConfigError
from cupre_d2.experiments.experiment import Experiment
from cupre_d2.report.page import write_html

AnyExperiment = TypeVar("AnyExperiment", bound=Experiment)


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
        command = shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        return cls(command, checkout(), {"python": platform.python_version(), **versions()})

    def of_runs(self, commits: Iterable[str]) -> "Origin":
        """With the commits of runs, each once."""
        return replace(self, commits=tuple(dict.fromkeys(commits)))

    @property
    def trained_with(self) -> str:
        """Commits, for people."""
        return ", ".join(self.commits or (self.commit,))


@dataclass(frozen=True)
class Outcome(Generic[AnyExperiment]):
    """A finished experiment.

    Attributes:
        results: path of what it leaves, without a suffix.
    """

    experiment: AnyExperiment
    origin: Origin
    results: Path

    def beside(self, ending: str) -> Path:
        """A file whose name begins as all of this experiment's do."""
        return beside(self.results, ending)

    def save(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Every number, as JSON."""
        write_json(self.beside(".json"), {**vars(self.origin), **self.experiment.identity(), "runs": list(runs)})

    def write_report(self, render: Callable[[Any], str]) -> Path | None:
        """RESULTS_report.html, of what `render` makes; None where it could not be made, which is logged."""
        return write_html(self.beside("_report.html"), lambda: render(self))

    def header(self, title: str) -> list[str]:
        """How the page begins, in Markdown: the title, where its numbers come from, and what people have to say of them.

        That is RESULTS_notes.md, which is theirs: the page is made anew each time.
        """
        name, notes = self.results.name, self.beside("_notes.md")
        return [
            f"# {title}",
            f"```\n{self.origin.command}\n```",
            f"Commit {self.origin.trained_with}. Every number is in [{name}.json]({name}.json).",
            *([notes.read_text().strip()] if notes.is_file() else []),
        ]


def beside(results: Path, ending: str) -> Path:
    """The file of an experiment with this ending, of which `results` is what all of them begin with."""
    return results.with_name(results.name + ending)


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
