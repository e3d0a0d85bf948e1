from pathlib import Path

import pytest

from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import ConfigError


@pytest.fixture()
def pipeline_file(tmp_path: Path) -> str:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/first.yaml").write_text("SOLVER:\n  MAX_ITER: 11\n  BASE_LR: 0.5\n")
    (tmp_path / "stages/second.yaml").write_text("_BASE_: first.yaml\nTRAINER: MoCoTrainer\n")
    (tmp_path / "two.yaml").write_text(
        "PIPELINE:\n  STAGES: [stages/first.yaml, stages/second.yaml]\n  OVERRIDES: [second.SOLVER.BASE_LR, 0.25]\n"
        "OUTPUT_DIR: somewhere\nSEED: 7\n"
    )
    return str(tmp_path / "two.yaml")


def test_each_stage_starts_from_the_one_before(pipeline_file: str) -> None:
    output_dir, (first, second) = load_stages(pipeline_file)
    assert output_dir == "somewhere"
    assert (first.name, first.cfg.OUTPUT_DIR, first.cfg.MODEL.WEIGHTS) == ("first", "somewhere/1_first", "")
    assert second.cfg.MODEL.WEIGHTS == "somewhere/1_first/model_final.pth"
    assert second.cfg.TRAINER == "MoCoTrainer"
    assert (first.cfg.SEED, second.cfg.SEED) == (7, 7)


def test_overrides_reach_all_stages_or_one(pipeline_file: str) -> None:
    opts = [
        "SOLVER.MAX_ITER",
        "3",
        "first.SOLVER.BASE_LR",
        "0.125",
        "OUTPUT_DIR",
        "elsewhere",
        "MODEL.WEIGHTS",
        "start.pth",
    ]
    output_dir, (first, second) = load_stages(pipeline_file, opts)
    assert output_dir == "elsewhere"
    assert (first.cfg.SOLVER.MAX_ITER, second.cfg.SOLVER.MAX_ITER) == (3, 3)
    assert (first.cfg.SOLVER.BASE_LR, second.cfg.SOLVER.BASE_LR) == (0.125, 0.25)
    assert first.cfg.MODEL.WEIGHTS == "start.pth"
    assert second.cfg.MODEL.WEIGHTS == "elsewhere/1_first/model_final.pth"


def test_a_stage_alone_is_a_pipeline_of_one(pipeline_file: str) -> None:
    output_dir, (stage,) = load_stages(str(Path(pipeline_file).parent / "stages/second.yaml"))
    assert (output_dir, stage.name, stage.cfg.SOLVER.MAX_ITER) == ("output/second", "second", 11)


def test_weights_of_a_named_stage(pipeline_file: str) -> None:
    _, (_, second) = load_stages(pipeline_file, ["second.MODEL.BACKBONE_WEIGHTS", "stage:first"])
    assert second.cfg.MODEL.BACKBONE_WEIGHTS == "somewhere/1_first/model_final.pth"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITR", "3"], "SOLVER.MAX_ITR: no such config key; did you mean .*SOLVER.MAX_ITER"),
        (["frist.SOLVER.MAX_ITER", "3"], "neither a config key nor a stage; did you mean first"),
        (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (["SOLVER.MAX_ITER", "many"], "Type mismatch"),
        (["first.MODEL.WEIGHTS", "stage:second"], "stage first: stage:second: no earlier stage"),
    ],
)
def test_bad_overrides(pipeline_file: str, opts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_stages(pipeline_file, opts)
    assert "\n" not in str(caught.value)


def test_unknown_arm_offers_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean .*cupre_livecell_5pct.yaml"):
        load_stages("configs/cupr_livecell_5pct.yaml")


@pytest.mark.parametrize("content", ["- a list\n", "A: [\n", "!!python/object/apply:os.system ['true']\n"])
def test_unreadable_yaml(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match="bad.yaml"):
        load_stages(str(tmp_path / "bad.yaml"))
