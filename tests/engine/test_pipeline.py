import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cupre_d2.engine import pipeline, preemption, results
from cupre_d2.engine.results import StageRecord, table
from cupre_d2.engine.stage_trainer import StageTrainer
from cupre_d2.engine.stages import Stage, load_stages
from cupre_d2.errors import CheckpointError, ConfigError, DatasetError, ResultsError
from cupre_d2.files import release


def write_pipeline(folder: Path) -> str:
    """coco_pretrain -> finetune on small images; the stages of configs/mini."""
    stages = Path("configs/mini/stages").resolve()
    file = folder / "two.yaml"
    file.write_text(
        f"PIPELINE:\n  STAGES: [{stages}/coco_pretrain.yaml, {stages}/finetune.yaml]\n"
        "  TARGET: bbbc038\n  SUBSET: 5pct\n"
        f"OUTPUT_DIR: {folder}/out\n"
    )
    return str(file)


def run(config: str, opts: list[str], only: str | None = None, restart: bool = False) -> tuple[str, list[Stage]]:
    job = pipeline.prepare(config, opts, only, restart)
    pipeline.run(job)
    return job.output_dir, job.stages


def modified(stages: list[Stage]) -> list[int]:
    return [stage.final_checkpoint.stat().st_mtime_ns for stage in stages]


def test_runs_skips_and_restarts(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    config = write_pipeline(tmp_path)
    output_dir, stages = run(config, slim)
    found = json.loads((Path(output_dir) / "results.json").read_text())
    assert [stage["name"] for stage in found["stages"]] == ["coco_pretrain", "finetune"]
    assert {"AP", "AP50", "AR2000"} <= found["metrics"]["bbbc038_val"]["segm"].keys()
    assert [stage["folder"] for stage in found["stages"]] == ["1_coco_pretrain", "2_finetune"]
    assert found["units"] == {"bbox": "%", "segm": "%"}
    assert found["config"]["SOLVER"]["MAX_ITER"] == 2
    assert list((stages[1].folder / "overlays/bbbc038_val").glob("*.png"))

    made = modified(stages)
    run(config, slim)
    assert modified(stages) == made

    changed = [*slim, "SOLVER.BASE_LR", "0.002"]
    with pytest.raises(ConfigError, match="made with another config .SOLVER.BASE_LR .* -> 0.002.*--restart"):
        run(config, changed)
    run(config, changed, only="finetune", restart=True)
    assert modified(stages)[0] == made[0]
    assert modified(stages)[1] > made[1]


def test_fine_tuning_starts_from_pretraining(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    nothing_moves = ["finetune.SOLVER.BASE_LR", "1e-30"]
    _, (first, second) = run(write_pipeline(tmp_path), [*slim, *nothing_moves])
    before = torch.load(first.final_checkpoint, weights_only=True)["model"]
    after = torch.load(second.final_checkpoint, weights_only=True)["model"]
    name = "backbone.bottom_up.stem.conv1_1.weight"
    assert torch.allclose(before[name], after[name], atol=1e-12)


def test_folder_of_another_pipeline(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    output_dir, stages = load_stages(write_pipeline(tmp_path), slim)
    pipeline.open_folder(output_dir, stages, stages, restart=False)
    other = ["OUTPUT_DIR", output_dir, "PIPELINE.TARGET", "bbbc038"]
    _, moco = load_stages("configs/mini/stages/moco.yaml", other)
    with pytest.raises(ConfigError, match="holds another pipeline .stage 1_coco_pretrain.; --restart removes it"):
        pipeline.open_folder(output_dir, moco, moco, restart=False)
    pipeline.open_folder(output_dir, moco, moco, restart=True)
    assert sorted(path.name for path in Path(output_dir).iterdir()) == ["1_moco"]


def test_free_settings_may_change(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    config = write_pipeline(tmp_path)
    output_dir, stages = load_stages(config, slim)
    pipeline.open_folder(output_dir, stages, stages, restart=False)
    output_dir, stages = load_stages(config, [*slim, "SOLVER.CHECKPOINT_PERIOD", "7"])
    pipeline.open_folder(output_dir, stages, stages, restart=False)
    assert stages[0].cfg.SOLVER.CHECKPOINT_PERIOD == 7


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["coco_pretrain.DATASETS.TRAIN", "('coco_2017_trian',)"], "coco_2017_trian.*coco_2017_train"),
        (["coco_pretrain.TRAINER", "DetectoinTrainer"], "TRAINER DetectoinTrainer: did you mean DetectionTrainer"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "NUM_CLASSES 3: coco_2017_train has 80 classes"),
        (["finetune.INPUT.MASK_FORMAT", "polygon"], "expected INPUT.MASK_FORMAT bitmask"),
        (
            ["finetune.DATASETS.TRAIN", "('bbbc038_train_0pct',)"],
            "0 percent; expected more than 0 and at most 100",
        ),
        (["finetune.DATASETS.TRAIN", "()"], "no image to train on"),
        (["MODEL.MASK_ON", "False"], "MODEL.MASK_ON False: cells are evaluated by their masks"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH 0"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER 0"),
        (["SOLVER.OPTIMIZER", "adamw"], "SOLVER.OPTIMIZER 'adamw': did you mean AdamW"),
        (["SOLVER.BASE_LR", "-1.0"], "SOLVER.BASE_LR -1.0"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "stage coco_pretrain: MODEL.WEIGHTS nowhere.pth: no such file"),
    ],
)
def test_bad_input_before_training(
    small_datasets: Path, slim: list[str], tmp_path: Path, opts: list[str], message: str
) -> None:
    _, stages = load_stages(write_pipeline(tmp_path), [*slim, *opts])
    with pytest.raises(Exception, match=message) as caught:
        pipeline.check(stages, stages, restart=False)
    assert "\n" not in str(caught.value)


def test_stage_before_is_not_finished(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    _, stages = load_stages(write_pipeline(tmp_path), slim)
    with pytest.raises(CheckpointError, match="no such file; run stage coco_pretrain first"):
        pipeline.check(stages, stages[1:], restart=False)


def test_unknown_stage(slim: list[str], tmp_path: Path) -> None:
    _, stages = load_stages(write_pipeline(tmp_path), slim)
    with pytest.raises(ConfigError, match="--stage finetun: no such stage; did you mean finetune"):
        pipeline.select(stages, "finetun")


def test_evaluators_of_the_config(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    """What TEST.EVALUATORS asks for is in results.json and in the table."""
    opts = [*slim, "OUTPUT_DIR", str(tmp_path), "TEST.EVALUATORS", "('labels', 'cell_coco')"]
    opts += ["DATASETS.TRAIN", "('bbbc038_train',)", "TEST.OVERLAYS", "0"]
    metrics = pipeline.run(pipeline.prepare("configs/mini/stages/finetune.yaml", [*opts, "PIPELINE.TARGET", "bbbc038"]))
    (scores,) = metrics.values()
    shown = table(metrics)
    assert {"bbox", "segm", "labels"} == set(scores)
    assert {"DSB2018", "AJI", "PQ", "F1_50"} <= set(scores["labels"])
    assert "DSB2018" in shown and "AR2000" in shown


def test_every_evaluation_is_kept(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    """Also where several lie between two lines of the log."""
    opts = [*slim, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "2"]
    pipeline.train("configs/mini/scratch_bbbc038_5pct.yaml", dict(zip(opts[::2], opts[1::2], strict=True)))
    lines = [json.loads(line) for line in (tmp_path / "1_finetune/metrics.json").read_text().splitlines()]
    # That of the last step is made after training.
    assert [line["iteration"] for line in lines if any("segm/AP" in key for key in line)] == [1, 3]


def test_log_of_one_run_alone(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    logger = logging.getLogger("cupre_d2")
    for name in ("one", "two", "one"):
        pipeline.log_to(str(tmp_path / name))
        logger.info(f"of {name}")
    texts = [(tmp_path / name / "log.txt").read_text() for name in ("one", "two")]
    assert [(text.count("of one"), text.count("of two")) for text in texts] == [(2, 0), (0, 1)]


def test_record_of_0_1_0_knows_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "2_amt2"
    record = StageRecord("amt2", "AlternatingTrainer", 1.5, 8, {"cells": {"counts": {"MAE": 3.0}}}, "abc", folder.name)
    record.write(folder)
    (folder / "model_final.pth").touch()
    saved = json.loads((folder / "stage.json").read_text())
    assert saved.pop("folder") == "2_amt2"
    (folder / "stage.json").write_text(json.dumps(saved))
    assert StageRecord.read(folder) == record


def test_table_of_any_task() -> None:
    metrics = {"cells": {"segm": {"AP": 12.345}, "counts": {"MAE": 3.14159, "bias": float("nan")}}}
    detection, counts = table(metrics).split("\n\n")
    assert "12.3" in detection and "MAE" not in detection
    header, _, row = counts.splitlines()
    assert (header.split(), row.split()) == (["data", "set", "task", "MAE", "bias"], ["cells", "counts", "3.142", "-"])


def test_record_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "stage.json").write_text("{")
    with pytest.raises(ResultsError, match="stage.json: broken .*; remove it to have it made anew"):
        StageRecord.read(tmp_path)


def test_a_signal_waits_for_the_last_evaluation(
    small_datasets: Path, slim: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are kept: the same command has nothing left to do."""
    evaluate = StageTrainer.test_and_keep_best

    def interrupted(trainer: StageTrainer) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(trainer)

    monkeypatch.setattr(StageTrainer, "test_and_keep_best", interrupted)
    job = pipeline.prepare("configs/mini/scratch_bbbc038_5pct.yaml", [*slim, "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        pipeline.run(job)
    assert left.value.code == preemption.RESUME_ME
    assert "segm" in StageRecord.read(job.stages[0].folder).metrics["bbbc038_val"]


def test_the_commit_is_unknown_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert results.checkout() == "unknown"


def test_the_commit_is_of_what_decides_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        name = ("-c", "user.name=x", "-c", "user.email=x@y.z")
        subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.checkout() == "unknown"
    for file in ("cupre_d2/a.py", "docs/results.md"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    commit = results.checkout()
    assert len(commit) >= 7 and "+" not in commit
    (tmp_path / "docs/results.md").write_text("2")
    assert results.checkout() == commit
    (tmp_path / "cupre_d2/a.py").write_text("2")
    assert results.checkout() == commit + "+"
    # As in the site-packages of an environment that lies in a checkout of something else.
    monkeypatch.setattr(results, "ROOT", tmp_path / "cupre_d2")
    assert results.checkout() == "unknown"


def test_a_restart_removes_nothing_before_all_is_checked(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    """Neither for a number of processes that cannot share a batch, nor in a process that is not the first."""
    config = "configs/mini/scratch_bbbc038_5pct.yaml"
    opts = [*slim, "OUTPUT_DIR", str(tmp_path)]
    _, (stage,) = run(config, opts)
    release(tmp_path)
    with pytest.raises(ConfigError, match="IMS_PER_BATCH 2: expected a positive multiple of the processes .3."):
        pipeline.prepare(config, opts, restart=True, processes=3)
    assert stage.final_checkpoint.is_file()
    pipeline.prepare(config, opts, restart=True, first=False)
    assert stage.final_checkpoint.is_file()
    pipeline.prepare(config, opts, restart=True)
    assert not stage.final_checkpoint.exists()


def test_a_stage_alone_leaves_results_and_a_report(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    overrides = dict(zip(slim[::2], slim[1::2], strict=True)) | {"OUTPUT_DIR": str(tmp_path)}
    config = write_pipeline(tmp_path)
    pipeline.train(config, overrides, only="coco_pretrain")
    found = json.loads((tmp_path / "results.json").read_text())
    assert [stage["name"] for stage in found["stages"]] == ["coco_pretrain"]
    assert found["config"]["DATASETS"]["TRAIN"] == ["coco_2017_train"]
    assert (tmp_path / "report.html").is_file()


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    opts = ["OUTPUT_DIR", "~/out", "MODEL.WEIGHTS", "~/start.pth", "finetune.MODEL.BACKBONE_WEIGHTS", "~/backbone.pth"]
    output_dir, (first, second) = load_stages("configs/mini/coco_bbbc038_5pct.yaml", opts)
    assert output_dir == str(tmp_path / "out") and first.folder == tmp_path / "out/1_coco_pretrain"
    assert str(tmp_path / "start.pth") == first.cfg.MODEL.WEIGHTS
    assert str(tmp_path / "backbone.pth") == second.cfg.MODEL.BACKBONE_WEIGHTS


def test_without_coco_the_error_names_what_needs_none(slim: list[str], tmp_path: Path) -> None:
    _, stages = load_stages("configs/mini/cupre_bbbc038_5pct.yaml", [*slim, "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(
        DatasetError, match="coco_2017_trian.*; pipelines without stage coco_pretrain: .*scratch.yaml"
    ) as ended:
        stages[0].cfg.defrost()
        stages[0].cfg.DATASETS.TRAIN = ("coco_2017_trian",)
        pipeline.check(stages, stages, restart=False)
    assert "coco.yaml" not in str(ended.value) and "5pct" not in str(ended.value)


TRAINED_BY_A_SCRIPT = """
import sys
from cupre_d2.engine import train
metrics = train(sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2])))
"""


@pytest.mark.slow
def test_a_script_that_trains_under_torchrun(dataset_root: Path, slim: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TRAINED_BY_A_SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    opts = ["configs/mini/scratch_bbbc038_5pct.yaml", *slim, "OUTPUT_DIR", str(tmp_path / "out")]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(dataset_root), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*torchrun, *opts], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "segm" in json.loads((tmp_path / "out/results.json").read_text())["metrics"]["bbbc038_val"]
