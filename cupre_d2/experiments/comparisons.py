"""The tables that reproduce.py makes, by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cupre_d2.experiments.cupre.comparison import CupreComparison
from cupre_d2.experiments.deep_clustering.comparison import ClusteringComparison
from cupre_d2.experiments.results import Origin
from cupre_d2.experiments.runner import Engine


class Comparison(Protocol):
    """Many pipelines, and the table that comes of them.

    Raises:
        CupreError: when it is made, the grid cannot be used; before anything runs, a config or data set cannot.
    """

    def __init__(
        self, dataset: str, configs: Path, given: Mapping[str, Sequence[Any] | None], overrides: Sequence[str], tasks: Path
    ) -> None:
        """
        Args:
            dataset: its name.
            configs: their folder.
            given: the grid's lists from the command line, None where it has none.
            overrides: as on train_net.py's command line.
            tasks: their folders go below it.
        """

    def identity(self) -> dict[str, Any]:
        """What makes two of them the same."""

    def lines(self, slots: int) -> list[str]:
        """What it runs, for people: one for each task, and the sum."""

    def run(self, engine: Engine) -> None:
        """Runs what is not done; raises TaskError as `runner.run`."""

    def write(self, results: Path, origin: Origin) -> None:
        """Of one that is all done: files whose names begin with `results`, all numbers and pages for people."""


COMPARISONS: dict[str, type[Comparison]] = {"cupre": CupreComparison, "neural_gas": ClusteringComparison}
