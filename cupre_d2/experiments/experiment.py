"""What every experiment is: a grid of pipelines on one data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from cupre_d2.errors import ConfigError

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

    def with_values(self, stage: str, values: Mapping[str, Any]) -> list[Any]:
        """The overrides, and those of a stage that the grid sets.

        Raises:
            ConfigError: an override of what the grid sets, which would be kept but have no effect.
        """
        chosen = {f"{stage}.{key}": value for key, value in values.items()}
        for key in self.overrides[::2]:
            if key in chosen:
                raise ConfigError(f"{key}: set by the lists of the table (see --help); expected no override of it")
        return [*self.overrides, *(item for pair in chosen.items() for item in pair)]
