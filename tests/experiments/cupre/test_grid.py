"""What is compared: the grid's files, its cells, and the configs that come of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cupre_d2.engine.alternating import Schedule
from cupre_d2.engine.results import write_json
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import ConfigError
from cupre_d2.experiments.cupre.grid import Cell, Experiment, Grid, load_grid
from cupre_d2.experiments.results import check_earlier

CONFIGS = Path("configs")
GRID = {"ARMS": ["scratch", "coco"], "PERCENTS": [5, 10], "SEEDS": [0, 3], "LEARNING_RATES": [0.1, 0.2]}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "reproduce.yaml").write_text(yaml.safe_dump({**GRID, **changes}))
    return folder


def test_what_is_given_takes_the_place_of_the_files(tmp_path: Path) -> None:
    grid = load_grid(write(tmp_path), {"seeds": [7], "arms": None, "clusters": None})
    assert grid == Grid(("scratch", "coco"), (5, 10), (7,), (0.1, 0.2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ARMS": []}, r"reproduce.yaml: ARMS: \[\]; expected a list of str"),
        ({"SEEDS": [0, 0]}, "expected no value twice"),
        ({"SEEDS": [-1]}, "reproduce.yaml: SEEDS: .*expected 0 or more"),
        ({"SEEDS": [0.5]}, "expected a list of int"),
        ({"SEEDS": [True]}, "expected a list of int"),
        ({"PERCENTS": [0]}, "PERCENTS: .*expected more than 0, up to 100"),
        ({"PERCENTS": [101]}, "PERCENTS: .*expected more than 0, up to 100"),
        ({"PERCENTS": ["5"]}, "expected a list of int or float"),
        ({"LEARNING_RATES": [0]}, "LEARNING_RATES: .*expected more than 0"),
        ({"RATES": [1]}, "expected the keys ARMS, PERCENTS, SEEDS, LEARNING_RATES"),
    ],
)
def test_grids_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_grid(write(tmp_path, **changes), {})


def test_a_folder_without_a_grid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reproduce.yaml: cannot be read"):
        load_grid(tmp_path, {})
    with pytest.raises(ConfigError, match="--seeds: .*expected 0 or more"):
        load_grid(write(tmp_path), {"seeds": [-2]})
    with pytest.raises(
        ConfigError, match="--clusters: not of this table; expected --arms, --percents, --seeds, --learning-r"
    ):
        load_grid(write(tmp_path), {"clusters": [5]})


def test_cells() -> None:
    experiment = Experiment("bbbc038", CONFIGS / "mini", Grid(("scratch", "coco"), (5, 10), (0, 3), (0.1, 0.2)))
    first = experiment.first_seed()
    assert len(first) == 8 and {cell.seed for cell in first} == {0}
    chosen = {("scratch", 5.0): 0.1, ("coco", 5.0): 0.2}
    assert experiment.all_seeds(chosen) == [
        Cell("scratch", 5, 0, 0.1),
        Cell("scratch", 5, 3, 0.1),
        Cell("coco", 5, 0, 0.2),
        Cell("coco", 5, 3, 0.2),
    ]


def test_a_cell_reaches_fine_tuning_alone() -> None:
    overrides = ("finetune_bbbc038_5pct.SOLVER.MAX_ITER", 80)
    experiment = Experiment("bbbc038", CONFIGS / "mini", Grid(("coco",), (10,), (3,), (0.1,)), overrides)
    pretraining, finetuning = experiment.stages(Cell("coco", 10, 3, 0.1))
    assert finetuning.cfg.DATASETS.TRAIN == ("bbbc038_train_10pct_seed3",)
    assert finetuning.cfg.DATASETS.TEST == ("bbbc038_val",)
    assert (finetuning.cfg.SEED, finetuning.cfg.SOLVER.BASE_LR, finetuning.cfg.SOLVER.MAX_ITER) == (3, 0.1, 80)
    assert (pretraining.cfg.SEED, pretraining.cfg.SOLVER.MAX_ITER) == (0, 700)


def test_an_unknown_arm() -> None:
    with pytest.raises(ConfigError, match="no such arm; did you mean cupre"):
        Experiment("bbbc038", CONFIGS / "mini", Grid((), (), (), ())).config_file("cupe")
    with pytest.raises(ConfigError, match="none for this data set"):
        Experiment("nuclei", CONFIGS / "mini", Grid((), (), (), ())).config_file("cupre")


@pytest.mark.parametrize("folder", ["mini", ""])
def test_shipped_grids_name_shipped_pipelines(folder: str) -> None:
    grid = load_grid(CONFIGS / folder, {})
    experiment = Experiment("bbbc038", CONFIGS / folder, grid)
    for arm in grid.arms:
        assert experiment.config_file(arm).is_file()


def test_coco_long_has_as_many_coco_iterations_as_cupre() -> None:
    (pretraining, amt2, _), (longer, _) = (
        load_stages(f"configs/mini/{arm}_bbbc038_5pct.yaml")[1] for arm in ("cupre", "coco_long")
    )
    in_rounds = amt2.cfg.AMT2.ROUNDS * amt2.cfg.AMT2.COCO_ITERS
    assert pretraining.cfg.SOLVER.MAX_ITER + in_rounds == longer.cfg.SOLVER.MAX_ITER


@pytest.mark.parametrize("dataset", ["livecell", "bbbc038"])
def test_coco_long_at_full_size_is_stretched_as_a_whole(dataset: str) -> None:
    (short, amt2, _), (longer, _) = (load_stages(f"configs/{arm}_{dataset}_5pct.yaml")[1] for arm in ("cupre", "coco_long"))
    solver, long_solver = short.cfg.SOLVER, longer.cfg.SOLVER
    # Detectron2's count of the images of coco_2017_train that have annotations.
    rounds = Schedule.from_config(amt2.cfg, num_unlabeled=1, num_annotated=117_266)
    assert solver.MAX_ITER + rounds.rounds * rounds.coco_iters == long_solver.MAX_ITER
    for step, later in zip(solver.STEPS, long_solver.STEPS, strict=True):
        assert later / long_solver.MAX_ITER == pytest.approx(step / solver.MAX_ITER, abs=1e-3)


@pytest.mark.parametrize(("seeds", "rates"), [((1, 0), (0.1,)), ((0, 1), (0.1, 0.2)), ((0, 1), (0.2,))])
def test_what_chooses_the_learning_rate_is_part_of_the_experiment(
    tmp_path: Path, seeds: tuple[int, ...], rates: tuple[float, ...]
) -> None:
    """Else a run in the table could be exchanged for another after the test images were read."""
    first = Experiment("bbbc038", CONFIGS, Grid(("coco",), (5,), (0, 1), (0.1,)))
    write_json(tmp_path / "x.json", {**first.identity(), "runs": []})
    check_earlier(
        tmp_path / "x", Experiment("bbbc038", CONFIGS, Grid(("coco", "cupre"), (5,), (0, 1, 2), (0.1,))).identity()
    )
    with pytest.raises(ConfigError, match="results of another chosen_by"):
        check_earlier(tmp_path / "x", Experiment("bbbc038", CONFIGS, Grid(("coco",), (5,), seeds, rates)).identity())


def test_the_table_needs_boxes_and_masks() -> None:
    overrides = ("finetune_bbbc038_5pct.TEST.EVALUATORS", "('labels',)")
    experiment = Experiment("bbbc038", CONFIGS / "mini", Grid(("coco",), (5,), (0,), (0.1,)), overrides)
    with pytest.raises(ConfigError, match="TEST.EVALUATORS .'labels',.: expected cell_coco among them"):
        experiment.stages(Cell("coco", 5, 0, 0.1))
