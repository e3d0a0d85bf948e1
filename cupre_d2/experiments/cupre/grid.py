"""What an experiment compares: arms x training fractions x seeds, on one data set at one scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupre_d2.engine.stages import Stage, load_stages
from cupre_d2.errors import ConfigError, closest
from cupre_d2.experiments import experiment
from cupre_d2.experiments.grids import SEEDS, Rule, read_grid

GRID_FILE = "reproduce.yaml"
FINETUNE = "finetune_{dataset}_5pct"

RULES: dict[str, Rule] = {
    "ARMS": ((str,), bool, "names"),
    "PERCENTS": ((int, float), lambda value: 0 < value <= 100, "more than 0, up to 100"),
    "SEEDS": SEEDS,
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


class Experiment(experiment.Experiment[Grid]):
    """On NAME_train, NAME_val and NAME_test of the data set."""

    table = "cupre"

    def identity(self) -> dict[str, Any]:
        """As of any experiment, and what the learning rates are chosen by: with others, finished rows would change."""
        grid = self.grid
        return {**super().identity(), "chosen_by": {"seed": grid.seeds[0], "learning_rates": list(grid.learning_rates)}}

    def stages(self, cell: Cell) -> list[Stage]:
        """The pipeline of a cell; the OUTPUT_DIRs are its config's.

        Raises:
            ConfigError: there is no such arm, its config cannot be used, or an override of what the grid sets.
        """
        finetune = FINETUNE.format(dataset=self.dataset)
        values = {
            "DATASETS.TRAIN": (f"{self.dataset}_train_{cell.percent:g}pct_seed{cell.seed}",),
            "DATASETS.TEST": (f"{self.dataset}_val",),
            "SEED": cell.seed,
            "SOLVER.BASE_LR": cell.learning_rate,
        }
        _, stages = load_stages(str(self.config_file(cell.arm)), self.with_values(finetune, values))
        evaluators = stages[-1].cfg.TEST.EVALUATORS
        if "cell_coco" not in evaluators:
            raise ConfigError(f"{finetune}.TEST.EVALUATORS {tuple(evaluators)}: expected cell_coco among them")
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


def load_grid(folder: Path, given: Mapping[str, Sequence[Any] | None]) -> Grid:
    """The grid in a folder's reproduce.yaml, with what is given in place of its values; errors as of `read_grid`."""
    return Grid(**read_grid(folder / GRID_FILE, RULES, given))
