"""Tables that reproduce.py makes: what each combines, which pipelines come of it, what is measured and shown.

A table is a class with a line of `register_table`; a project has it in a module of its own.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import yaml

from cupre_d2.data.targets import Target, register_dataset_file, target
from cupre_d2.engine.results import Metrics
from cupre_d2.engine.stages import Stage, find_config, load_stages
from cupre_d2.errors import ConfigError, closest
from cupre_d2.experiments.blocks import Block
from cupre_d2.experiments.tasks import EvaluationTask, Task

# A point of a grid: a named tuple of the table's columns.
Run = Any


@dataclass(frozen=True)
class Values:
    """A list that a table combines.

    Attributes:
        column: what one of its values is called in the frame.
        kinds: types of a value.
        holds: what is true of each, and `expected` says so.
    """

    column: str
    kinds: tuple[type, ...]
    holds: Callable[[Any], bool]
    expected: str

    def read(self, text: str) -> Any:
        """A value of the command line; the text itself where it is of none of the types."""
        for kind in self.kinds:
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    def check(self, where: str, values: Any) -> tuple[Any, ...]:
        """Raises ConfigError if these are not values of this list."""
        if not isinstance(values, list | tuple) or not values or not all(type(value) in self.kinds for value in values):
            raise ConfigError(f"{where}: {values!r}; expected a list of {' or '.join(kind.__name__ for kind in self.kinds)}")
        if len(set(values)) < len(values):
            raise ConfigError(f"{where}: {values!r}; expected no value twice")
        if not all(map(self.holds, values)):
            raise ConfigError(f"{where}: {values!r}; expected {self.expected}")
        return tuple(values)


ARMS = Values("arm", (str,), bool, "names of pipelines or paths of their files")
SEEDS = Values("seed", (int,), lambda value: value >= 0, "0 or more")


@dataclass(frozen=True, eq=False)
class Experiment:
    """A table's grid of pipelines on one target.

    Attributes:
        dataset: the target's name.
        folder: where the configs are.
        grid: the lists of values that are combined.
        overrides: for all pipelines, as on train's command line; `STAGE.KEY` reaches those that have the stage.
        file: of own data sets, as --datasets names it; "" for none.
    """

    table: "Table"
    dataset: str
    folder: Path
    grid: Mapping[str, tuple[Any, ...]]
    overrides: tuple[Any, ...] = ()
    file: str = ""

    def identity(self) -> dict[str, Any]:
        """What makes two experiments the same."""
        found = {
            "table": self.table.name,
            "dataset": self.dataset,
            "configs": self.folder.name,
            "overrides": [str(item) for item in self.overrides],
            "grid": dict(self.grid),
        }
        if chosen := self.table.chosen:
            # With others, finished rows would change.
            found["chosen_by"] = {"seed": self.grid["seeds"][0], chosen: list(self.grid[chosen])}
        return found

    @property
    def title(self) -> str:
        return f"{self.dataset}: {self.table.title}"

    @cached_property
    def target(self) -> Target:
        """Raises DatasetError where there is none of this name, or the file cannot be used."""
        return self._own or self.table.target(self.dataset)

    @cached_property
    def _own(self) -> Target | None:
        own = register_dataset_file(self.file) if self.file else None
        return own if own and own.name == self.dataset else None

    def one_of(self, role: str) -> str:
        """The data set that is the target's "val" or "test"; raises ConfigError unless it is one."""
        found = self.target.roles.get(role, ())
        if len(found) != 1:
            raise ConfigError(f"--dataset {self.dataset}: {len(found)} data sets for {role}; expected one")
        return found[0]

    @cached_property
    def arms(self) -> dict[str, Path]:
        """The files of all pipelines by the names of arms; raises ConfigError where there is no such file."""
        given = self.grid.get("arms", (self.table.name,))
        files = {Path(arm).stem if _is_path(arm) else arm: self._file(arm) for arm in given}
        if len(files) < len(given):
            raise ConfigError(f"--arms {' '.join(given)}: expected files of different names")
        return files

    def _file(self, arm: str) -> Path:
        file = Path(find_config(arm)) if _is_path(arm) else self.folder / f"{arm}.yaml"
        if not file.is_file():
            known = [path.stem for path in file.parent.glob("*.yaml") if "\nPIPELINE:" in f"\n{path.read_text()}"]
            hint = closest(file.stem, known) if known else "the folder has no pipeline"
            raise ConfigError(f"{file}: no such arm; {hint}")
        return file

    def stages(self, arm: str, values: Mapping[str, Any], subset: str = "") -> list[Stage]:
        """A pipeline, with values by key for its last stage; the OUTPUT_DIRs are its config's.

        Args:
            subset: of the target's training images, e.g. "5pct_seed1".

        Raises:
            CupreError: the arm's config or the target cannot be used, or an override of what the grid sets.
        """
        if len(self.overrides) % 2:
            raise ConfigError(f"overrides come as KEY value pairs; {self.overrides[-1]!r} has no value")
        last = self._stage_names[arm][-1]
        chosen = {**self._target_keys, **{f"{last}.{key}": value for key, value in values.items()}}
        if subset:
            chosen["PIPELINE.SUBSET"] = subset
        for key in self.overrides[::2]:
            if key in chosen or (subset and key == f"{last}.DATASETS.TRAIN"):
                raise ConfigError(f"{key}: set by the lists of the table (see --help); expected no override of it")
        opts = [*self._overrides_of(arm), *(item for pair in chosen.items() for item in pair)]
        return load_stages(str(self.arms[arm]), opts)[1]

    @property
    def _target_keys(self) -> dict[str, Any]:
        # A file's own target goes without a name.
        keys = {} if self._own else {"PIPELINE.TARGET": self.target.name}
        return {**keys, "DATASETS.FILE": self.file} if self.file else keys

    @cached_property
    def _stage_names(self) -> dict[str, list[str]]:
        """By arm."""
        opts = [item for pair in self._target_keys.items() for item in pair]
        return {arm: [stage.name for stage in load_stages(str(file), opts)[1]] for arm, file in self.arms.items()}

    def _overrides_of(self, arm: str) -> list[Any]:
        """Without those of stages that only other pipelines have."""
        elsewhere = {name for names in self._stage_names.values() for name in names} - {*self._stage_names[arm]}
        return [
            item
            for place, item in enumerate(self.overrides)
            if str(self.overrides[place - place % 2]).partition(".")[0] not in elsewhere
        ]


def _is_path(arm: str) -> bool:
    return arm.endswith((".yaml", ".yml"))


@dataclass(frozen=True)
class FinishedRun:
    """A run with what it has left.

    Attributes:
        tests: evaluations beyond those of its own last stage, by data set.
    """

    run: Run
    task: Task
    tests: Mapping[str, EvaluationTask] = field(default_factory=dict)

    def metrics(self) -> Metrics:
        """{data set: {task: {metric: value}}}, of its own DATASETS.TEST and of the tests; raises ResultsError."""
        own = {dataset: self.task.metrics(dataset) for dataset in self.task.settings["DATASETS"]["TEST"]}
        return own | {dataset: test.metrics() for dataset, test in self.tests.items()}

    def detections(self, dataset: str) -> Path:
        """COCO's results format."""
        return self.tests[dataset].detections() if dataset in self.tests else self.task.detections(dataset)


@dataclass(frozen=True)
class FinishedTable:
    """What a table's page is made of.

    Attributes:
        frame: a row a run, data set, task and metric: the columns of runs, "dataset", "task", "metric" and "value".
        entries: of each run, as `Table.entry` made it.
    """

    experiment: Experiment
    runs: Sequence[FinishedRun]
    entries: Sequence[Mapping[str, Any]]
    frame: pd.DataFrame

    def tasks(self) -> dict[Run, Task]:
        return {one.run: one.task for one in self.runs}


class Table:
    """A table of a paper: what to run and what to show. It combines its lists, the seeds among them, in every way.

    Attributes:
        title: of its page, after the data set's name.
        dataset: the target where the command line names none.
        lists: what is combined, by the names of their options; their values are columns of the frame, in this order.
        chosen: the list of which each combination of the others takes the one value with the best TEST.BEST, tried with the
            first seed; "" for none.
        configs: a project's own folder of pipelines and `reproduce_NAME.yaml`, its mini/ included; None for this package's.
    """

    name: str = ""
    title: ClassVar[str]
    dataset: ClassVar[str]
    lists: ClassVar[Mapping[str, Values]]
    chosen: ClassVar[str] = ""
    configs: ClassVar[Path | None] = None

    @property
    def columns(self) -> list[str]:
        """Of the frame, before the data set's."""
        return [of_list.column for of_list in self.lists.values()]

    def run(self, *values: Any) -> Run:
        """A point of the grid; what is not given is None."""
        return namedtuple("Run", self.columns, defaults=[None] * len(self.columns))(*values)  # type: ignore[misc]

    def target(self, dataset: str) -> Target:
        """The target of a name; raises DatasetError where there is none."""
        return target(dataset)

    def runs(self, experiment: Experiment) -> list[Run]:
        """Of the whole grid; raises CupreError where they could not be compared."""
        values = [experiment.arms if name == "arms" else experiment.grid[name] for name in self.lists]
        return [self.run(*point) for point in product(*values)]

    def stages(self, experiment: Experiment, run: Run) -> list[Stage]:
        """The pipeline of a run; errors as of `Experiment.stages`."""
        return experiment.stages(getattr(run, "arm", self.name), {"SEED": run.seed})

    def tests(self, experiment: Experiment) -> tuple[str, ...]:
        """Data sets that runs are evaluated on once, after everything has been chosen."""
        return ()

    def metrics(self, experiment: Experiment, finished: FinishedRun) -> Metrics:
        """{data set: {task: {metric: value}}}, of which the frame is made; raises ResultsError."""
        return finished.metrics()

    def entry(self, experiment: Experiment, finished: FinishedRun) -> dict[str, Any]:
        """Of a run, for JSON; raises ResultsError."""
        return {**values_of(finished.run), "metrics": self.metrics(experiment, finished)}

    def blocks(self, finished: FinishedTable) -> list[Block]:
        """The page; raises CupreError where images, detections or checkpoints cannot be used."""
        raise NotImplementedError


def values_of(run: Run) -> dict[str, Any]:
    """By column, of those that it has."""
    return {column: value for column, value in run._asdict().items() if value is not None}


TABLES: dict[str, Table] = {}


def register_table(name: str, table: Table) -> None:
    """Makes a table known to reproduce's --table, its lists to its options; raises ConfigError if the name is taken."""
    if name in TABLES:
        raise ConfigError(f"table {name!r} is registered already; expected another name")
    table.name = name
    TABLES[name] = table


def read_grid(table: Table, folder: Path, given: Mapping[str, Sequence[str] | None]) -> dict[str, tuple[Any, ...]]:
    """The lists in the folder's reproduce_NAME.yaml, with what is given in place of its own.

    The file need not be there if everything is given.

    Args:
        given: the words of the command line, by option without dashes; None for those that it does not name.

    Raises:
        ConfigError: no such file, a missing or unknown key, a value that is not a list of the right kind.
    """
    words = {key: values for key, values in given.items() if values is not None}
    if strange := [key for key in words if key not in table.lists]:
        raise ConfigError(f"{_option(strange[0])}: not of this table; expected {', '.join(map(_option, table.lists))}")
    found = {key: table.lists[key].check(_option(key), [*map(table.lists[key].read, words[key])]) for key in words}
    if len(found) < len(table.lists):
        found = _read_lists(table, folder / f"reproduce_{table.name}.yaml") | found
    return {key: found[key] for key in table.lists}


def _read_lists(table: Table, file: Path) -> dict[str, tuple[Any, ...]]:
    try:
        raw = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    keys = [key.upper() for key in table.lists]
    if not isinstance(raw, dict) or set(raw) != set(keys):
        raise ConfigError(f"{file}: expected the keys {', '.join(keys)}")
    return {key.lower(): table.lists[key.lower()].check(f"{file}: {key}", values) for key, values in raw.items()}


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")
