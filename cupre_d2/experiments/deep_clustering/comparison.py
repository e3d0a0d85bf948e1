"""The deep-clustering paper's table, as reproduce.py makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from cupre_d2.errors import ConfigError
from cupre_d2.experiments import runner
from cupre_d2.experiments.deep_clustering import html, page
from cupre_d2.experiments.deep_clustering.grid import CLUSTERING, Cell, Experiment
from cupre_d2.experiments.deep_clustering.outcome import Outcome
from cupre_d2.experiments.deep_clustering.scores import EvaluatedSets, read_row
from cupre_d2.experiments.estimates import lines, outlook
from cupre_d2.experiments.results import Origin
from cupre_d2.experiments.tasks import Task, TaskList


@dataclass(frozen=True)
class Work:
    """
    Attributes:
        cfg: of a clustering stage.
        tasks: of the baseline (None) and of each cell.
        all: with what they start from.
    """

    cfg: CfgNode
    sets: EvaluatedSets
    tasks: Mapping[Cell | None, Task]
    all: Sequence[Task]


class ClusteringComparison:
    """One segmentation network, then algorithms x numbers of clusters x seeds; arguments and errors as of
    `comparisons.Comparison`.

    The networks are evaluated at the end of their own stages.
    """

    def __init__(self, experiment: Experiment, tasks: Path) -> None:
        self.experiment = experiment
        self._work = plan(experiment, tasks)

    def lines(self, slots: int) -> list[str]:
        return lines(self._work.all, slots)

    def run(self, engine: runner.Engine) -> None:
        tasks = self._work.all
        runner.run({task.key: task for task in tasks}, engine, lambda: outlook(tasks, engine.slots))

    def write(self, results: Path, origin: Origin) -> None:
        work = self._work
        origin = origin.of_runs(task.commit() for task in work.all)
        baseline, *rows = (read_row(cell, task, work.sets) for cell, task in work.tasks.items())
        outcome = Outcome(self.experiment, origin, results, work.cfg, baseline, rows, work.tasks)
        outcome.save([row.plain() for row in (baseline, *rows)])
        page.write_page(outcome)
        outcome.write_report(html.render)


def plan(experiment: Experiment, folder: Path) -> Work:
    """What an experiment runs, in folders below `folder`.

    Raises:
        CupreError: a config or data set cannot be used, or the networks could not be compared.
    """
    pipelines = {cell: experiment.stages(cell) for cell in experiment.cells()}
    # All pipelines have the same stages before the last.
    stages = next(iter(pipelines.values()))
    cfg = stages[-1].cfg
    sets = EvaluatedSets.of(stages[-2].cfg, cfg)
    found = TaskList(folder)
    baseline = found.add(stages[:-1])
    tasks: dict[Cell | None, Task] = {None: baseline}
    for cell, pipeline in pipelines.items():
        tasks[cell] = found.add(pipeline)
        if baseline.key not in tasks[cell].needs:
            raise ConfigError(f"{CLUSTERING}.MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: expected those of the stage before")
    return Work(cfg, sets, tasks, found.with_needs(tasks.values()))
