"""What an experiment leaves: every number as JSON, figures, and pages for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cupre_d2.experiments.cupre.grid import Cell, Experiment
from cupre_d2.experiments.cupre.scores import Row
from cupre_d2.experiments.results import Origin, beside, save
from cupre_d2.experiments.tasks import Evaluation


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
        return beside(self.results, ending)

    def save(self) -> None:
        """Every number, as JSON."""
        save(self.results, self.origin, self.experiment.identity(), [row.plain() for row in self.rows])

    def first_tests(self) -> dict[str, Evaluation]:
        """By arm: the fewest annotations and the first seed."""
        grid = self.experiment.grid
        wanted = (min(grid.percents), grid.seeds[0])
        return {cell.arm: test for cell, test in self.tests.items() if (cell.percent, cell.seed) == wanted}

    def evaluated_on(self) -> tuple[str, bool]:
        """Its name, and whether its categories are told apart."""
        cfg = self.experiment.stages(next(iter(self.tests)))[-1].cfg
        return f"{self.experiment.dataset}_test", cfg.TEST.CELL_COCO.USE_CATS
