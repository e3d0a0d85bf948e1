"""What an experiment runs, in which order, and what is still to do."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cupre_d2.experiments.cupre import scores
from cupre_d2.experiments.cupre.grid import Cell, Experiment
from cupre_d2.experiments.estimates import Timed, lines, outlook
from cupre_d2.experiments.tasks import Evaluation, Task, TaskList


class Plan:
    """The trials of learning rates, with all they start from; the runs of all seeds; their evaluations on the test images.

    Args:
        folder: the tasks' folders go below it.

    Raises:
        CupreError: a config or data set cannot be used.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self._list = TaskList(folder)
        self._by_cell: dict[Cell, Task] = {}
        self.trials = self._tasks(experiment.first_seed())

    def rates(self) -> dict[tuple[str, float], float]:
        """The learning rate of each (arm, percent) whose trials are all finished."""
        missing = {(cell.arm, cell.percent) for cell, task in self.trials.items() if not task.finished()}
        done = {cell: task for cell, task in self.trials.items() if (cell.arm, cell.percent) not in missing}
        return scores.choose(self.experiment.dataset, done)

    def runs(self) -> dict[Cell, Task]:
        """Of all seeds; with the first learning rate of the grid where it is still to be chosen."""
        first = self.experiment.grid.learning_rates[0]
        pairs = dict.fromkeys((cell.arm, cell.percent) for cell in self.trials)
        known = self.rates()
        return self._tasks(self.experiment.all_seeds({pair: known.get(pair, first) for pair in pairs}))

    def tests(self) -> dict[Cell, Evaluation]:
        """Of the runs."""
        return {cell: Evaluation(task, f"{self.experiment.dataset}_test") for cell, task in self.runs().items()}

    def with_needs(self, tasks: Iterable[Task]) -> dict[str, Task]:
        """Tasks and all they start from, by key."""
        return {task.key: task for task in self._list.with_needs(tasks)}

    def outlook(self, slots: int) -> str:
        """How much is done and how long the rest will take, with `slots` processes side by side."""
        return outlook(self._all(), slots)

    def lines(self, slots: int) -> list[str]:
        """For people: one for each task and evaluation, and the sum."""
        decided = {task.key for task in self._decided()}

        def note(item: Timed) -> str:
            task = item.task if isinstance(item, Evaluation) else item
            return "" if task.key in decided else "learning rate to be chosen"

        return lines(self._all(), slots, note)

    def _decided(self) -> list[Task]:
        """What will run whatever the trials show."""
        known = self.rates()
        runs = [task for cell, task in self.runs().items() if (cell.arm, cell.percent) in known]
        return self._list.with_needs([*self.trials.values(), *runs])

    def _all(self) -> Sequence[Task | Evaluation]:
        tasks = self.with_needs([*self.trials.values(), *self.runs().values()])
        return [*tasks.values(), *self.tests().values()]

    def _tasks(self, cells: Sequence[Cell]) -> dict[Cell, Task]:
        for cell in cells:
            if cell not in self._by_cell:
                self._by_cell[cell] = self._list.add(self.experiment.stages(cell))
        return {cell: self._by_cell[cell] for cell in cells}
