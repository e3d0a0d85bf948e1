"""What an experiment runs, in which order, what is still to do, and what it has come to."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cupre_d2.data import get_records
from cupre_d2.experiments import runner
from cupre_d2.experiments.blocks import write_markdown, write_report
from cupre_d2.experiments.engines import Engine
from cupre_d2.experiments.frames import short, tidy
from cupre_d2.experiments.origin import Origin, write_numbers
from cupre_d2.experiments.tables import Experiment, FinishedRun, FinishedTable, Run, values_of
from cupre_d2.experiments.tasks import AnyTask, EvaluationTask, Task, TaskList


class Plan:
    """Trials of what is chosen, with the first seed; the runs of all seeds; their evaluations on the test images.

    The tasks' folders go below `folder`. Raises CupreError where a config or data set cannot be used.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        # Missing test images would show in the end only.
        for dataset in experiment.table.tests(experiment):
            get_records(dataset)
        self._list = TaskList(folder)
        self._tasks: dict[Run, Task] = {}
        self._grid = experiment.table.runs(experiment)
        chosen = experiment.table.chosen
        self._column = experiment.table.lists[chosen].column if chosen else ""
        tried = [run for run in self._grid if chosen and run.seed == experiment.grid["seeds"][0]]
        self.trials = {run: self._task(run) for run in tried}
        # All of them, now: an error would else show after hours of trials.
        self.runs()

    def chosen(self) -> dict[Run, Any]:
        """The best value for each combination of the others whose trials are all finished; of equal ones the lowest."""
        tried: dict[Run, list[Run]] = {}
        for run in self.trials:
            tried.setdefault(self._combination(run), []).append(run)
        return {
            combination: min((-self.trials[run].score(), getattr(run, self._column)) for run in runs)[1]
            for combination, runs in tried.items()
            if all(self.trials[run].finished() for run in runs)
        }

    def runs(self) -> dict[Run, Task]:
        """Of all seeds; with the first value of the list where one is still to be chosen."""
        if not self._column:
            return {run: self._task(run) for run in self._grid}
        known, first = self.chosen(), self.experiment.grid[self.experiment.table.chosen][0]
        values = [known.get(self._combination(run), first) for run in self._grid]
        runs = [run._replace(**{self._column: value}) for run, value in zip(self._grid, values, strict=True)]
        return {run: self._task(run) for run in dict.fromkeys(runs)}

    def tests(self) -> dict[Run, dict[str, EvaluationTask]]:
        """Evaluations of the runs, by data set."""
        names = self.experiment.table.tests(self.experiment)
        return {run: {name: EvaluationTask(task, name) for name in names} for run, task in self.runs().items()}

    def run(self, engine: Engine) -> None:
        """Runs what is not done: trials first, as they choose, tests last; raises TaskError as `runner.run`."""

        def outlook() -> str:
            return runner.time_left(self._all(), engine.slots)

        runner.run(self._list.with_needs(self.trials.values()), engine, outlook)
        runner.run(self._list.with_needs(self.runs().values()), engine, outlook)
        runner.run({test.key: test for tests in self.tests().values() for test in tests.values()}, engine, outlook)

    def lines(self, slots: int) -> list[str]:
        """For people: one for each task, with the runs that it is of, and the sum."""
        items, runs, decided = self._all(), {**self.trials, **self.runs()}, self.chosen()
        own = {task.key: run for run, task in runs.items()}
        used: dict[str, list[Run]] = {}
        for run, task in runs.items():
            for key in self._list.with_needs([task]):
                used.setdefault(key, []).append(run)
        paces = runner.paces(items)
        lines = []
        for item in items:
            is_test = isinstance(item, EvaluationTask)
            key = item.task.key if isinstance(item, EvaluationTask) else item.key
            about = _first_column(used[key])
            if run := own.get(key):
                is_open = self._column and self._combination(run) not in decided and (is_test or run not in self.trials)
                values = values_of(run) | ({self._column: "to be chosen"} if is_open else {})
                about = [f"{column.replace('_', ' ')} {short(value)}" for column, value in values.items()]
            size = [] if is_test else [f"{item.work} iterations"]
            lines.append(f"{item.key}: {', '.join([*about, *size, _state(item, paces)])}")
        return [*lines, runner.time_left(items, slots)]

    def finished(self) -> list[FinishedRun]:
        tests = self.tests()
        return [FinishedRun(run, task, tests[run]) for run, task in self.runs().items()]

    def write(self, results: Path, origin: Origin) -> None:
        """Of a plan that is all done: files whose names begin with `results`, all numbers and pages for people.

        Raises:
            ResultsError: what a run has left is broken.
            CupreError: images, detections or checkpoints that a page shows cannot be used.
        """
        experiment, table, finished = self.experiment, self.experiment.table, self.finished()
        trained = self._list.with_needs(one.task for one in finished).values()
        tests = [test for one in finished for test in one.tests.values()]
        origin = origin.of_runs([*(task.commit() for task in trained), *(test.commit() for test in tests)])
        entries = [table.entry(experiment, one) for one in finished]
        frame = tidy((one.run._asdict(), table.metrics(experiment, one)) for one in finished)
        write_numbers(results, origin, experiment.identity(), entries, frame)
        blocks = table.blocks(FinishedTable(experiment, finished, entries, frame))
        write_markdown(results, experiment.title, origin, blocks)
        summary = " × ".join(f"{len(values)} {name.replace('_', ' ')}" for name, values in experiment.grid.items())
        write_report(results, experiment.title, summary, origin, blocks)

    def _all(self) -> Sequence[AnyTask]:
        tasks = self._list.with_needs([*self.trials.values(), *self.runs().values()])
        return [*tasks.values(), *(test for tests in self.tests().values() for test in tests.values())]

    def _task(self, run: Run) -> Task:
        if run not in self._tasks:
            self._tasks[run] = self._list.add(self.experiment.table.stages(self.experiment, run))
        return self._tasks[run]

    def _combination(self, run: Run) -> Run:
        return run._replace(**{self._column: None, "seed": None})


def _first_column(runs: Iterable[Run]) -> list[str]:
    """Whose stage it is, where several runs share it."""
    column = next(iter(runs))._fields[0]  # type: ignore[call-overload]
    values = [*dict.fromkeys(getattr(run, column) for run in runs)]
    return [f"{column}{'s' if len(values) > 1 else ''} {', '.join(map(short, values))}"]


def _state(item: AnyTask, paces: Mapping[str, float]) -> str:
    if item.finished():
        return "done"
    return f"about {item.work * paces[item.kind] / 60:.1f} min" if item.kind in paces else "time unknown"
