"""The tables that reproduce.py makes, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cupre_d2.experiments.cupre import grid as cupre
from cupre_d2.experiments.cupre.comparison import CupreComparison
from cupre_d2.experiments.deep_clustering import grid as deep_clustering
from cupre_d2.experiments.deep_clustering.comparison import ClusteringComparison
from cupre_d2.experiments.experiment import Experiment
from cupre_d2.experiments.results import Origin
from cupre_d2.experiments.runner import Engine


class Comparison(Protocol):
    """The pipelines of an experiment, in folders below another, and the table that comes of them.

    Raises:
        CupreError: when it is made: a config or data set cannot be used.
    """

    def lines(self, slots: int) -> list[str]:
        """What it runs, for people: one for each task, and the sum."""

    def run(self, engine: Engine) -> None:
        """Runs what is not done; raises TaskError as `runner.run`."""

    def write(self, results: Path, origin: Origin) -> None:
        """Of one that is all done: files whose names begin with `results`, all numbers and pages for people."""


class Table(NamedTuple):
    """
    Attributes:
        load_grid: from the folder of the configs and the command line's lists.
        experiment: from the data set's name, the folder of the configs, the grid and overrides.
        comparison: from the experiment and the folder that its tasks' folders go below.
    """

    load_grid: Callable[..., Any]
    experiment: Callable[..., Experiment]
    comparison: Callable[..., Comparison]


TABLES = {
    "cupre": Table(cupre.load_grid, cupre.Experiment, CupreComparison),
    "neural_gas": Table(deep_clustering.load_grid, deep_clustering.Experiment, ClusteringComparison),
}
