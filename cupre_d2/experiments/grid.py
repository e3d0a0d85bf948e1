"""What an experiment compares: arms x training fractions x seeds, on one data set at one scale."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cupre_d2.engine.stages import Stage, closest, load_stages
from cupre_d2.errors import ConfigError

# Folders of the pipelines' configs below configs/.
SCALES = {"mini": "mini", "paper": ""}
GRID_FILE = "reproduce.yaml"
FINETUNE = "finetune_{dataset}_5pct"

# Of each key: the types of its values, what holds for them, and how to say so.
RULES: dict[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "ARMS": ((str,), bool, "names"),
    "PERCENTS": ((int, float), lambda value: 0 < value <= 100, "more than 0, up to 100"),
    "SEEDS": ((int,), lambda value: value >= 0, "0 or more"),
    "LEARNING_RATES": ((int, float), lambda value: value > 0, "more than 0"),
}


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        arms: names of pipelines, `<arm>_<dataset>_5pct.yaml`.
        percents: of the training images that are annotated.
        seeds: of the few-shot subset and of fine-tuning; pre-training is done once.
        learning_rates: of fine-tuning, tried with the first seed; the best on the validation images is taken.
    """

    arms: tuple[str, ...]
    percents: tuple[float, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the grid."""

    arm: str
    percent: float
    seed: int
    learning_rate: float


@dataclass(frozen=True)
class Experiment:
    """A grid on one data set.

    Attributes:
        dataset: whose NAME_train, NAME_val and NAME_test are used.
        folder: where the configs are.
        overrides: for all pipelines, as on train_net.py's command line.
    """

    dataset: str
    folder: Path
    grid: Grid
    overrides: tuple[Any, ...] = ()

    def stages(self, cell: Cell) -> list[Stage]:
        """The pipeline of a cell; the OUTPUT_DIRs are its config's.

        Raises:
            ConfigError: there is no such arm, or its config cannot be used.
        """
        finetune = FINETUNE.format(dataset=self.dataset)
        values = {
            "DATASETS.TRAIN": (f"{self.dataset}_train_{cell.percent:g}pct_seed{cell.seed}",),
            "DATASETS.TEST": (f"{self.dataset}_val",),
            "SEED": cell.seed,
            "SOLVER.BASE_LR": cell.learning_rate,
        }
        chosen = [item for key, value in values.items() for item in (f"{finetune}.{key}", value)]
        _, stages = load_stages(str(self.config_file(cell.arm)), [*self.overrides, *chosen])
        return stages

    def config_file(self, arm: str) -> Path:
        """The arm's pipeline; raises ConfigError where there is none."""
        file = self.folder / f"{arm}_{self.dataset}_5pct.yaml"
        if not file.is_file():
            suffix = f"_{self.dataset}_5pct"
            known = [path.stem.removesuffix(suffix) for path in self.folder.glob(f"*{suffix}.yaml")]
            raise ConfigError(f"{file}: no such arm; {closest(arm, known) if known else 'none for this data set'}")
        return file

    def first_seed(self) -> list[Cell]:
        """Every arm and fraction with every learning rate, the first seed alone."""
        grid = self.grid
        return [
            Cell(arm, percent, grid.seeds[0], rate)
            for arm in grid.arms
            for percent in grid.percents
            for rate in grid.learning_rates
        ]

    def all_seeds(self, chosen: dict[tuple[str, float], float]) -> list[Cell]:
        """Every arm, fraction and seed with the learning rate chosen for (arm, percent)."""
        return [Cell(arm, percent, seed, rate) for (arm, percent), rate in chosen.items() for seed in self.grid.seeds]


def load_grid(folder: Path, **given: Sequence[Any] | None) -> Grid:
    """The grid in a folder's reproduce.yaml, with what is given (and not None) in place of its values.

    Raises:
        ConfigError: no such file, a missing or unknown key, a value that is not a list of the right kind.
    """
    file = folder / GRID_FILE
    try:
        raw = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict) or set(raw) != set(RULES):
        raise ConfigError(f"{file}: expected the keys {', '.join(RULES)}")
    grid = Grid(**{key.lower(): _checked(f"{file}: {key}", key, values) for key, values in raw.items()})
    changes = {key: _checked(f"--{key}", key.upper(), values) for key, values in given.items() if values is not None}
    return replace(grid, **changes)


def _checked(where: str, key: str, values: Any) -> tuple[Any, ...]:
    kinds, holds, expected = RULES[key]
    if not isinstance(values, list | tuple) or not values or not all(type(value) in kinds for value in values):
        raise ConfigError(f"{where}: {values!r}; expected a list of {' or '.join(kind.__name__ for kind in kinds)}")
    if len(set(values)) < len(values):
        raise ConfigError(f"{where}: {values!r}; expected no value twice")
    if not all(map(holds, values)):
        raise ConfigError(f"{where}: {values!r}; expected {expected}")
    return tuple(values)
