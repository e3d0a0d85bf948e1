"""What every experiment is: a grid of pipelines on one data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

Grid = TypeVar("Grid")


@dataclass(frozen=True)
class Experiment(Generic[Grid]):
    """
    Attributes:
        table: its name for reproduce.py.
        dataset: whose images are used, by their registered names.
        folder: where the configs are.
        grid: the lists of values that are combined.
        overrides: for all pipelines, as on train_net.py's command line.
    """

    table: ClassVar[str]
    dataset: str
    folder: Path
    grid: Grid
    overrides: tuple[Any, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What makes two experiments the same."""
        return {
            "table": self.table,
            "dataset": self.dataset,
            "configs": self.folder.name,
            "overrides": [str(item) for item in self.overrides],
            "grid": vars(self.grid),
        }
