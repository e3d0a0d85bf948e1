"""The table of CUPre's paper, as reproduce.py makes it."""

from pathlib import Path

from cupre_d2.data import get_records
from cupre_d2.experiments import runner
from cupre_d2.experiments.cupre import html, page
from cupre_d2.experiments.cupre.grid import Experiment
from cupre_d2.experiments.cupre.learning import read_curve
from cupre_d2.experiments.cupre.outcome import Outcome
from cupre_d2.experiments.cupre.plan import Plan
from cupre_d2.experiments.cupre.scores import Row, validation
from cupre_d2.experiments.results import Origin


class CupreComparison:
    """Arms x annotated fractions x seeds on the test images; arguments and errors as of `comparisons.Comparison`."""

    def __init__(self, experiment: Experiment, tasks: Path) -> None:
        self.experiment = experiment
        # Missing test images would show in the end only.
        get_records(f"{experiment.dataset}_test")
        self._plan = Plan(experiment, tasks)

    def lines(self, slots: int) -> list[str]:
        return self._plan.lines(slots)

    def run(self, engine: runner.Engine) -> None:
        """Trials first, as they choose the learning rates of the runs."""
        plan = self._plan

        def outlook() -> str:
            return plan.outlook(engine.slots)

        runner.run(plan.with_needs(plan.trials.values()), engine, outlook)
        runner.run(plan.with_needs(plan.runs().values()), engine, outlook)
        runner.run({test.key: test for test in plan.tests().values()}, engine, outlook)

    def write(self, results: Path, origin: Origin) -> None:
        dataset, tests = self.experiment.dataset, self._plan.tests()
        trained = self._plan.with_needs(self._plan.runs().values()).values()
        commits = [*(task.commit() for task in trained), *(test.commit() for test in tests.values())]
        origin = origin.of_runs(commits)
        rows = [
            Row(cell, validation(dataset, task), tests[cell].metrics(), read_curve(task, dataset))
            for cell, task in self._plan.runs().items()
        ]
        outcome = Outcome(self.experiment, origin, results, rows, tests)
        outcome.save([row.plain() for row in rows])
        page.write_page(outcome)
        outcome.write_report(html.render)
