"""The deep-clustering paper's table, as reproduce.py makes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cupre_d2.experiments import runner
from cupre_d2.experiments.deep_clustering import html, page
from cupre_d2.experiments.deep_clustering.grid import Cell, Experiment, load_grid
from cupre_d2.experiments.deep_clustering.outcome import Outcome
from cupre_d2.experiments.deep_clustering.scores import TestSets, read_row
from cupre_d2.experiments.estimates import lines, outlook
from cupre_d2.experiments.results import Origin
from cupre_d2.experiments.tasks import Task, TaskList


class ClusteringComparison:
    """One segmentation network, then algorithms x numbers of clusters x seeds; arguments and errors as of
    `comparisons.Comparison`.

    The networks are evaluated at the end of their own stages.
    """

    def __init__(
        self, dataset: str, configs: Path, given: Mapping[str, Sequence[Any] | None], overrides: Sequence[str], tasks: Path
    ) -> None:
        self.experiment = Experiment(dataset, configs, load_grid(configs, given), tuple(overrides))
        pipelines = {cell: self.experiment.stages(cell) for cell in self.experiment.cells()}
        stages = next(iter(pipelines.values()))
        self._cfg = stages[-1].cfg
        self._sets = TestSets.of(self._cfg)
        self._list = TaskList(tasks)
        # All pipelines have the same stages before the last.
        self._tasks: dict[Cell | None, Task] = {None: self._list.add(stages[:-1])}
        self._tasks |= {cell: self._list.add(stages) for cell, stages in pipelines.items()}

    def identity(self) -> dict[str, Any]:
        return self.experiment.identity()

    def lines(self, slots: int) -> list[str]:
        return lines(self._all(), slots)

    def run(self, engine: runner.Engine) -> None:
        tasks = self._all()
        runner.run({task.key: task for task in tasks}, engine, lambda: outlook(tasks, engine.slots))

    def write(self, results: Path, origin: Origin) -> None:
        baseline, *rows = (read_row(cell, task, self._sets) for cell, task in self._tasks.items())
        outcome = Outcome(self.experiment, self._cfg, origin, results, baseline, rows, self._tasks)
        outcome.save()
        page.write_page(outcome)
        html.write_report(outcome)

    def _all(self) -> list[Task]:
        return self._list.with_needs(self._tasks.values())
