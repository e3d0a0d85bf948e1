"""What CUPre's runs have come to, of which the table's pages are made."""

from collections.abc import Mapping
from dataclasses import dataclass

from cupre_d2.experiments import results
from cupre_d2.experiments.cupre.grid import Cell, Experiment
from cupre_d2.experiments.cupre.scores import Row
from cupre_d2.experiments.tasks import Evaluation


@dataclass(frozen=True)
class Outcome(results.Outcome[Experiment]):
    """
    Attributes:
        rows: one a run.
        tests: their evaluations on the test images.
    """

    rows: list[Row]
    tests: Mapping[Cell, Evaluation]

    def first_tests(self) -> dict[str, Evaluation]:
        """By arm: the fewest annotations and the first seed."""
        grid = self.experiment.grid
        wanted = (min(grid.percents), grid.seeds[0])
        return {cell.arm: test for cell, test in self.tests.items() if (cell.percent, cell.seed) == wanted}

    def evaluated_on(self) -> tuple[str, bool]:
        """Its name, and whether its categories are told apart."""
        cfg = self.experiment.stages(next(iter(self.tests)))[-1].cfg
        return f"{self.experiment.dataset}_test", cfg.TEST.CELL_COCO.USE_CATS
