"""What is compared: clusterings x number of clusters x seeds, all of one segmentation network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cupre_d2.engine.pseudo_labels import ALGORITHMS
from cupre_d2.engine.stages import Stage, load_stages
from cupre_d2.errors import ConfigError
from cupre_d2.experiments import experiment
from cupre_d2.experiments.grids import SEEDS, Rule, read_grid

GRID_FILE = "reproduce_neural_gas.yaml"
CLUSTERING = "clustering"

RULES: dict[str, Rule] = {
    "ALGORITHMS": ((str,), lambda value: value in ALGORITHMS, f"names of {', '.join(ALGORITHMS)}"),
    "CLUSTERS": ((int,), lambda value: value >= 2, "2 or more"),
    "SEEDS": SEEDS,
}


@dataclass(frozen=True)
class Grid:
    """
    Attributes:
        algorithms: as CLUSTERING.ALGORITHM.
        clusters: as CLUSTERING.CLUSTERS.
        seeds: of the samples, their clusters and the training on them; the segmentation network is trained once.
    """

    algorithms: tuple[str, ...]
    clusters: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One retrained encoder of the grid."""

    algorithm: str
    clusters: int
    seed: int


class Experiment(experiment.Experiment[Grid]):
    """Of the pipeline neural_gas_NAME.yaml, which names the images that are trained on and evaluated."""

    table = "neural_gas"

    def cells(self) -> list[Cell]:
        return [Cell(*values) for values in product(self.grid.algorithms, self.grid.clusters, self.grid.seeds)]

    def stages(self, cell: Cell) -> list[Stage]:
        """The pipeline of a cell, the clustering last.

        Raises:
            ConfigError: there is no such pipeline, it cannot be used, or an override of what the grid sets.
        """
        file = self.folder / f"neural_gas_{self.dataset}.yaml"
        if not file.is_file():
            raise ConfigError(f"{file}: no such pipeline, which --table neural_gas needs for --dataset {self.dataset}")
        values = {"CLUSTERING.ALGORITHM": cell.algorithm, "CLUSTERING.CLUSTERS": cell.clusters, "SEED": cell.seed}
        _, stages = load_stages(str(file), self.with_values(CLUSTERING, values))
        if len(stages) < 2:
            raise ConfigError(f"{file}: expected a network that segments, then the stage {CLUSTERING}")
        return stages


def load_grid(folder: Path, given: Mapping[str, Sequence[Any] | None]) -> Grid:
    """The grid in a folder's reproduce_neural_gas.yaml, with what is given in place; errors as of `read_grid`."""
    return Grid(**read_grid(folder / GRID_FILE, RULES, given))
