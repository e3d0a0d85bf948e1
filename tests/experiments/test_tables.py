"""What is combined: lists of files and command lines, pipelines of arms, and what makes two experiments the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cupre_d2.errors import ConfigError
from cupre_d2.experiments import cupre, neural_gas, tables  # noqa: F401
from cupre_d2.experiments.origin import check_earlier
from cupre_d2.experiments.tables import SEEDS, TABLES, Experiment, Table, read_grid

MINI = Path("configs/mini")
LISTS = {"ARMS": ["scratch", "coco"], "PERCENTS": [5, 10], "SEEDS": [0, 3], "LEARNING_RATES": [0.1, 0.2]}
GRID = {"arms": ("scratch", "coco"), "percents": (5, 10), "seeds": (0, 1), "learning_rates": (0.1,)}
CUPRE, NEURAL_GAS = TABLES["cupre"], TABLES["neural_gas"]


def experiment(*overrides: Any, **changes: Any) -> Experiment:
    return Experiment(CUPRE, "bbbc038", MINI, {**GRID, **changes}, overrides)


def write(folder: Path, **changes: Any) -> Path:
    (folder / "reproduce_cupre.yaml").write_text(yaml.safe_dump({**LISTS, **changes}))
    return folder


def test_what_is_given_takes_the_place_of_the_files(tmp_path: Path) -> None:
    grid = read_grid(CUPRE, write(tmp_path), {"seeds": ["7"], "arms": None, "clusters": None})
    expected = {"arms": ("scratch", "coco"), "percents": (5, 10), "seeds": (7,), "learning_rates": (0.1, 0.2)}
    assert grid == expected and list(grid) == list(expected)
    given = {"arms": ["a"], "percents": ["5", "12.5"], "seeds": ["7"], "learning_rates": ["1e-3"]}
    assert read_grid(CUPRE, tmp_path / "none", given)["percents"] == (5, 12.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ARMS": []}, r"reproduce_cupre.yaml: ARMS: \[\]; expected a list of str"),
        ({"SEEDS": [0, 0]}, "expected no value twice"),
        ({"SEEDS": [-1]}, "SEEDS: .*expected 0 or more"),
        ({"SEEDS": [0.5]}, "expected a list of int"),
        ({"SEEDS": [True]}, "expected a list of int"),
        ({"PERCENTS": [0]}, "PERCENTS: .*expected more than 0, up to 100"),
        ({"PERCENTS": [101]}, "PERCENTS: .*expected more than 0, up to 100"),
        ({"PERCENTS": ["5"]}, "expected a list of int or float"),
        ({"LEARNING_RATES": [0]}, "LEARNING_RATES: .*expected more than 0"),
        ({"RATES": [1]}, "expected the keys ARMS, PERCENTS, SEEDS, LEARNING_RATES"),
    ],
)
def test_lists_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_grid(CUPRE, write(tmp_path, **changes), {})


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        (CUPRE, {"seeds": ["-2"]}, "--seeds: .*expected 0 or more"),
        (CUPRE, {"seeds": ["x"]}, "--seeds: .*expected a list of int"),
        (CUPRE, {"clusters": ["5"]}, "--clusters: not of this table; expected --arms, --percents, --seeds, --learning-r"),
        (NEURAL_GAS, {"algorithms": ["dbscan"]}, "--algorithms: .*expected names of kmeans, neural_gas, growing_neural_gas"),
        (NEURAL_GAS, {"clusters": ["1"]}, "--clusters: .*expected 2 or more"),
    ],
)
def test_command_lines_that_cannot_be(table: Table, given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_grid(table, MINI, given)


def test_a_folder_without_lists(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reproduce_cupre.yaml: cannot be read"):
        read_grid(CUPRE, tmp_path, {})


@pytest.mark.parametrize("folder", ["configs", "configs/mini"])
@pytest.mark.parametrize("table", [CUPRE, NEURAL_GAS])
def test_shipped_lists_name_shipped_pipelines(table: Table, folder: str) -> None:
    grid = read_grid(table, Path(folder), {})
    assert all(file.is_file() for file in Experiment(table, table.dataset, Path(folder), grid).arms.values())


def test_every_combination_is_a_run() -> None:
    runs = CUPRE.runs(experiment())
    assert len(runs) == 8 and runs[0] == ("scratch", 5, 0, 0.1) and runs[-1].arm == "coco"


def test_a_run_reaches_fine_tuning_alone() -> None:
    pretraining, finetuning = CUPRE.stages(experiment("finetune.SOLVER.MAX_ITER", 80), CUPRE.run("coco", 10, 3, 0.1))
    assert finetuning.cfg.DATASETS.TRAIN == ("bbbc038_train_10pct_seed3",)
    assert finetuning.cfg.DATASETS.TEST == ("bbbc038_val",)
    assert (finetuning.cfg.SEED, finetuning.cfg.SOLVER.BASE_LR, finetuning.cfg.SOLVER.MAX_ITER) == (3, 0.1, 80)
    assert (pretraining.cfg.SEED, pretraining.cfg.SOLVER.MAX_ITER) == (0, 700)


def test_overrides_reach_the_pipelines_that_have_the_stage() -> None:
    made = experiment("coco_pretrain.SOLVER.MAX_ITER", 80, "SOLVER.MOMENTUM", 0.5)
    (scratch,), (pretraining, _) = (CUPRE.stages(made, CUPRE.run(arm, 5, 0, 0.1)) for arm in GRID["arms"])
    assert (pretraining.cfg.SOLVER.MAX_ITER, pretraining.cfg.SOLVER.MOMENTUM, scratch.cfg.SOLVER.MOMENTUM) == (80, 0.5, 0.5)
    with pytest.raises(ConfigError, match="amt2.AMT2.ROUNDS: neither a config key nor a stage"):
        CUPRE.stages(experiment("amt2.AMT2.ROUNDS", 2), CUPRE.run("coco", 5, 0, 0.1))
    with pytest.raises(ConfigError, match="'SEED' has no value"):
        CUPRE.stages(experiment("SEED"), CUPRE.run("coco", 5, 0, 0.1))


@pytest.mark.parametrize("key", ["finetune.SOLVER.BASE_LR", "finetune.DATASETS.TRAIN", "PIPELINE.SUBSET"])
def test_what_the_lists_set_cannot_be_overridden(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: set by the lists of the table"):
        CUPRE.stages(experiment(key, "1"), CUPRE.run("coco", 5, 0, 0.1))


def test_an_arm_may_be_a_file_from_anywhere(tmp_path: Path) -> None:
    stage = Path("configs/mini/stages/finetune.yaml").resolve()
    file = tmp_path / "mine.yaml"
    file.write_text(f"PIPELINE: {{STAGES: [{stage}]}}\n")
    made = experiment(arms=(str(file), "coco"))
    assert made.arms == {"mine": file, "coco": MINI / "coco.yaml"}
    assert [run.arm for run in CUPRE.runs(made)][::4] == ["mine", "coco"]
    (mine,) = CUPRE.stages(made, CUPRE.run("mine", 10, 1, 0.1))
    assert mine.cfg.DATASETS.TRAIN == ("bbbc038_train_10pct_seed1",)
    with pytest.raises(ConfigError, match="--arms .*expected files of different names"):
        experiment(arms=(str(file), str(tmp_path / ".." / tmp_path.name / "mine.yaml"))).arms  # noqa: B018
    with pytest.raises(ConfigError, match="other.yaml: no such arm; known: mine"):
        experiment(arms=(str(tmp_path / "other.yaml"),)).arms  # noqa: B018


def test_an_unknown_arm() -> None:
    with pytest.raises(ConfigError, match="cupe.yaml: no such arm; did you mean cupre"):
        experiment(arms=("cupe",)).arms  # noqa: B018


def test_own_data_by_a_file(dataset_root: Path, tmp_path: Path) -> None:
    images = dataset_root / "livecell/images/livecell_train_val_images"
    annotations = dataset_root / "livecell/annotations/LIVECell"
    entries = {
        f"own_{role}": {"for": role, "images": str(images), "annotations": str(annotations / f"livecell_coco_{split}.json")}
        for role, split in {"train": "train", "val": "val", "test": "val"}.items()
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entries))
    made = replace(experiment(), dataset="own", file=str(tmp_path / "own.yaml"))
    (finetuning,) = CUPRE.stages(made, CUPRE.run("scratch", 50, 0, 0.1))
    assert finetuning.cfg.DATASETS.TRAIN == ("own_train_50pct_seed0",) and CUPRE.tests(made) == ("own_test",)
    assert str(tmp_path / "own.yaml") == finetuning.cfg.DATASETS.FILE


def test_a_target_without_validation() -> None:
    with pytest.raises(ConfigError, match="--dataset bbbc038_types: 2 data sets for val; expected one"):
        CUPRE.stages(replace(experiment(), dataset="bbbc038_types"), CUPRE.run("coco", 5, 0, 0.1))


def test_cupre_needs_boxes_and_masks() -> None:
    with pytest.raises(ConfigError, match="finetune.TEST.EVALUATORS .'labels',.: expected cell_coco among them"):
        CUPRE.stages(experiment("finetune.TEST.EVALUATORS", "('labels',)"), CUPRE.run("coco", 5, 0, 0.1))


@pytest.mark.parametrize("folder", ["configs", "configs/mini"])
def test_coco_long_is_cupre_without_moco(folder: str) -> None:
    """As many COCO iterations, in the same rounds, whatever cupre has."""
    made = replace(experiment("AMT2.COCO_ITERS", 7, arms=("cupre", "coco_long")), folder=Path(folder))
    pipelines = [CUPRE.stages(made, CUPRE.run(arm, 5, 0, 0.1)) for arm in made.arms]
    assert [[stage.name for stage in stages] for stages in pipelines] == [["coco_pretrain", "amt2", "finetune"]] * 2
    (first, amt2, _), (same, alone, _) = ([stage.cfg for stage in stages] for stages in pipelines)
    assert first.SOLVER == same.SOLVER and (amt2.AMT2.MOCO, alone.AMT2.MOCO) == (True, False)
    assert all(cfg.AMT2.COCO_ITERS == 7 for cfg in (amt2, alone)) and amt2.AMT2.ROUNDS == alone.AMT2.ROUNDS


def test_a_project_registers_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Table):
        title, dataset, lists = "counting", "bbbc005", {"seeds": SEEDS}

    monkeypatch.setattr(tables, "TABLES", {})
    tables.register_table("counting", Counting())
    table = tables.TABLES["counting"]
    made = Experiment(table, "bbbc005", Path("configs"), {"seeds": (0, 1)})
    assert [run._asdict() for run in table.runs(made)] == [{"seed": 0}, {"seed": 1}]
    assert made.identity()["table"] == "counting" and "chosen_by" not in made.identity()
    with pytest.raises(ConfigError, match="table 'counting' is registered already"):
        tables.register_table("counting", Counting())


def save(made: Experiment, results: Path) -> None:
    results.with_suffix(".json").write_text(json.dumps({**made.identity(), "runs": []}))


def test_the_same_and_a_larger_grid_may_take_the_place_of_results(tmp_path: Path) -> None:
    check_earlier(tmp_path / "x", experiment().identity())
    save(experiment(), tmp_path / "x")
    check_earlier(tmp_path / "x", experiment().identity())
    larger = experiment(arms=("scratch", "coco", "cupre"), percents=(5, 10, 20), seeds=(0, 1, 2))
    check_earlier(tmp_path / "x", larger.identity())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(experiment(), dataset="livecell"),
            "x.json: results of another dataset, bbbc038; expected livecell; name an",
        ),
        (replace(experiment(), folder=Path("configs")), "another configs, mini; expected configs"),
        (experiment("SOLVER.MAX_ITER", 80), r"another overrides, \[\]; expected .'SOLVER.MAX_ITER', '80'.; name another"),
        (experiment(seeds=(0, 2)), r"another grid, with seeds \[1\]; name another file with --results"),
        (experiment(arms=("coco",)), r"another grid, with arms \['scratch'\]"),
        # Else a run in the table could be exchanged for another after the test images were read.
        (experiment(seeds=(1, 0)), "results of another chosen_by"),
        (experiment(learning_rates=(0.1, 0.2)), "results of another chosen_by"),
        (
            replace(experiment(), table=NEURAL_GAS, grid={"seeds": (0,)}),
            "results of another table, cupre; expected neural_g",
        ),
    ],
)
def test_results_of_another_experiment(other: Experiment, message: str, tmp_path: Path) -> None:
    save(experiment(), tmp_path / "x")
    with pytest.raises(ConfigError, match=message):
        check_earlier(tmp_path / "x", other.identity())


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"grid": 3}', '{"grid": {"arms": 3}}'])
def test_what_is_no_results_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ConfigError, match="x.json: no results of reproduce.py"):
        check_earlier(tmp_path / "x", experiment().identity())


def test_files_of_before_the_table_was_kept(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"grid": GRID, "runs": []}))
    check_earlier(tmp_path / "x", experiment().identity())
