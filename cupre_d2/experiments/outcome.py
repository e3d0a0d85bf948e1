"""What an experiment leaves: every number as JSON, figures, and pages for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupre_d2.engine.results import write_json
from cupre_d2.errors import ConfigError
from cupre_d2.experiments.grid import Cell, Experiment
from cupre_d2.experiments.scores import Row
from cupre_d2.experiments.tasks import Evaluation


@dataclass(frozen=True)
class Origin:
    """Where numbers come from: the command as typed, the commit, versions of what decides results."""

    command: str
    commit: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """A finished experiment.

    Attributes:
        results: path of what it leaves, without a suffix.
        rows: one a run.
        tests: their evaluations on the test images.
    """

    experiment: Experiment
    origin: Origin
    results: Path
    rows: list[Row]
    tests: Mapping[Cell, Evaluation]

    def beside(self, ending: str) -> Path:
        """A file whose name begins as all of this experiment's do."""
        return self.results.with_name(self.results.name + ending)

    def save(self) -> None:
        """Every number, as JSON."""
        write_json(
            self.beside(".json"),
            {**vars(self.origin), **identity(self.experiment), "runs": [row.plain() for row in self.rows]},
        )

    def first_tests(self) -> dict[str, Evaluation]:
        """By arm: the fewest annotations and the first seed."""
        grid = self.experiment.grid
        wanted = (min(grid.percents), grid.seeds[0])
        return {cell.arm: test for cell, test in self.tests.items() if (cell.percent, cell.seed) == wanted}

    def evaluated_on(self) -> tuple[str, bool]:
        """Its name, and whether its categories are told apart."""
        cfg = self.experiment.stages(next(iter(self.tests)))[-1].cfg
        return f"{self.experiment.dataset}_test", cfg.TEST.CELL_COCO.USE_CATS


def identity(experiment: Experiment) -> dict[str, Any]:
    """What makes two experiments the same."""
    return {
        "dataset": experiment.dataset,
        "configs": experiment.folder.name,
        "overrides": [str(item) for item in experiment.overrides],
        "grid": vars(experiment.grid),
    }


def check_earlier(results: Path, experiment: Experiment) -> None:
    """Raises ConfigError if a results file is there that this experiment would not only renew or add to."""
    file = results.with_name(results.name + ".json")
    if not file.exists():
        return
    remedy = "name another file with --results, or remove it"
    now = identity(experiment)
    try:
        # Files of before they were kept lack the first three.
        content = json.loads(file.read_text())
        earlier, grid = now | content, content["grid"]
        lost = {key: [value for value in grid[key] if value not in values] for key, values in now["grid"].items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: no results of reproduce.py ({type(error).__name__}: {error}); {remedy}") from error
    for key in ("dataset", "configs", "overrides"):
        if earlier[key] != now[key]:
            raise ConfigError(f"{file}: results of another {key}, {earlier[key]}; expected {now[key]}; {remedy}")
    for key, values in lost.items():
        if values:
            raise ConfigError(f"{file}: results of another grid, with {key} {values}; {remedy}")
