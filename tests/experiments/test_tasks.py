"""Tasks that pipelines share, and what makes two stages one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cupre_d2.engine import pipeline
from cupre_d2.engine.results import write_json
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import ConfigError, ResultsError
from cupre_d2.experiments import tasks as tasks_module
from cupre_d2.experiments.tasks import EvaluationTask, Task, TaskList

MINI = "configs/mini"
METRICS = {"segm": {"AP": 3.0}, "bbox": {"AP": 4.0}}


class Planner:
    @staticmethod
    def plan(cfg: object) -> int:
        return 7


@pytest.fixture()
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Adds an arm's pipeline to one list of tasks; input is not checked."""
    monkeypatch.setattr("cupre_d2.experiments.tasks.trainer_class", lambda stage: Planner)
    tasks = TaskList(tmp_path)

    def add(arm: str, *opts: object, to: TaskList = tasks) -> tuple:
        return to.add(load_stages(f"{MINI}/{arm}.yaml", ["PIPELINE.TARGET", "bbbc038", *opts])[1]), to.tasks

    return add


def test_pretraining_is_shared(add: Callable) -> None:
    coco, _ = add("coco")
    cupre, tasks = add("cupre")
    assert [task.stage for task in tasks.values()] == ["coco_pretrain", coco.stage, "amt2", cupre.stage]
    assert coco.key != cupre.key and tasks[cupre.needs[0]].stage == "amt2"
    assert tasks[cupre.needs[0]].needs == coco.needs


def test_other_settings_make_another_task(add: Callable) -> None:
    one, tasks = add("coco")
    other, _ = add("coco", "finetune.SOLVER.MAX_ITER", 80)
    assert one.key != other.key and one.needs == other.needs
    before, _ = add("coco", "coco_pretrain.SOLVER.MAX_ITER", 9)
    assert before.key not in (one.key, other.key) and before.needs != one.needs
    assert len(tasks) == 5


def test_settings_that_do_not_change_what_is_trained(add: Callable) -> None:
    one, tasks = add("coco")
    # Nor does what is said to be as it is anyway.
    assert add("coco", "CLUSTERING.SAMPLES", 5000)[0].key == one.key
    assert add("coco", "DATALOADER.NUM_WORKERS", 3, "OUTPUT_DIR", "elsewhere")[0].key == one.key
    assert len(tasks) == 2


def test_keys_do_not_depend_on_where_the_tasks_are(add: Callable, tmp_path: Path) -> None:
    assert add("cupre")[0].key == add("cupre", to=TaskList(tmp_path / "moved"))[0].key


def test_a_new_key_leaves_finished_work_known(add: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = add("cupre")[0].key
    monkeypatch.setattr("cupre_d2.config._registered", [lambda cfg: cfg.SOLVER.__setitem__("NEW", 3)])
    tasks_module._defaults.cache_clear()
    try:
        assert add("cupre", to=TaskList(tmp_path / "later"))[0].key == before
        assert add("cupre", "SOLVER.NEW", 4, to=TaskList(tmp_path / "later"))[0].key != before
    finally:
        tasks_module._defaults.cache_clear()


def test_a_changed_default_is_not_taken_for_the_same(add: Callable, tmp_path: Path) -> None:
    task, _ = add("scratch")
    saved = task.stage_folder / "config.yaml"
    saved.parent.mkdir(parents=True)
    config = yaml.safe_load(task.config) | {"OUTPUT_DIR": str(task.stage_folder)}
    del config["SOLVER"]["GAMMA"]
    saved.write_text(yaml.safe_dump(config))
    add("scratch", to=TaskList(tmp_path))
    config["SOLVER"]["GAMMA"] = 0.25
    saved.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="config.yaml: trained with SOLVER.GAMMA 0.25, which is 0.1 now; choose another"):
        add("scratch", to=TaskList(tmp_path))


def test_two_starts(add: Callable) -> None:
    """COCO++ takes the neck and head of one stage and the backbone of another."""
    task, tasks = add("cocopp")
    assert [tasks[key].stage for key in task.needs] == ["coco_pretrain", "moco"]
    config = yaml.safe_load(task.config)
    weights = [config["MODEL"][name] for name in ("WEIGHTS", "BACKBONE_WEIGHTS")]
    assert weights == [str(tasks[key].checkpoint) for key in task.needs]


def test_a_stage_without_use_is_not_trained(add: Callable, tmp_path: Path) -> None:
    tasks = TaskList(tmp_path)
    last, _ = add("coco", "finetune.MODEL.WEIGHTS", "published.pth", to=tasks)
    assert [task.stage for task in tasks.with_needs([last]).values()] == ["finetune"]


def test_the_config_in_its_folder_is_the_stage(add: Callable) -> None:
    task, _ = add("coco", "finetune.SOLVER.MAX_ITER", 80)
    command = task.prepare()
    assert command[-2:] == ["--config-file", str(task.config_file)]
    output_dir, (stage,) = load_stages(command[-1])
    assert output_dir == str(task.folder) and stage.folder == task.stage_folder
    assert stage.final_checkpoint == task.checkpoint
    assert (stage.name, stage.cfg.SOLVER.MAX_ITER) == (task.stage, 80)
    pipeline.open_folder(output_dir, [stage], [stage], restart=False)
    pipeline.open_folder(output_dir, [stage], [stage], restart=False)


def test_finished(add: Callable) -> None:
    task, _ = add("scratch")
    assert not task.finished()
    write_json(
        task.stage_folder / "stage.json",
        {"name": task.stage, "trainer": "t", "seconds": 14.0, "iterations": 7, "metrics": {"x": {}}},
    )
    assert not task.finished()
    task.checkpoint.write_bytes(b"")
    record = task.record()
    assert task.finished() and record is not None and record.seconds == 14


def test_an_evaluation_is_read_from_its_folder(add: Callable) -> None:
    task, _ = add("scratch")
    evaluation = EvaluationTask(task, "bbbc038_test")
    command = evaluation.prepare()
    options = dict(zip(command[-6::2], command[-5::2], strict=True))
    assert options["DATASETS.TEST"] == "('bbbc038_test',)" and options["MODEL.WEIGHTS"] == str(task.checkpoint)
    assert not evaluation.finished()
    write_json(Path(options["OUTPUT_DIR"]) / "evaluation.json", {"metrics": {"bbbc038_test": METRICS}})
    assert evaluation.finished() and evaluation.metrics() == METRICS
    assert evaluation.seconds() is None
    write_json(evaluation.timing, {"seconds": 3.5})
    assert evaluation.seconds() == 3.5


def finish(task: Task, metrics: dict) -> Path:
    record = {"name": task.stage, "trainer": "t", "seconds": 14.0, "iterations": 7, "metrics": metrics}
    write_json(task.stage_folder / "stage.json", record)
    task.checkpoint.write_bytes(b"")
    return task.stage_folder / "stage.json"


def test_seconds_are_those_of_the_process_and_at_least_those_of_training(add: Callable) -> None:
    task, _ = add("scratch")
    write_json(task.timing, {"seconds": 20.0})
    assert task.seconds() is None
    finish(task, {})
    assert task.seconds() == 20
    # As of a task of which only the last attempt was timed.
    write_json(task.timing, {"seconds": 2.0})
    assert task.seconds() == 14
    task.timing.unlink()
    assert task.seconds() == 14


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}'])
def test_a_broken_record_is_said_in_one_line(content: str, add: Callable) -> None:
    task, _ = add("scratch")
    file = finish(task, {})
    file.write_text(content)
    with pytest.raises(ResultsError, match="stage.json: broken .*; remove it to have it made anew$"):
        task.finished()


@pytest.mark.parametrize("metrics", [{}, {"bbbc038_val": None}, {"bbbc038_val": {"segm": 1.0}}])
def test_metrics_that_are_not_there(metrics: dict, add: Callable) -> None:
    task, _ = add("scratch")
    finish(task, metrics)
    with pytest.raises(ResultsError, match="stage.json: broken .no metrics on bbbc038_val"):
        task.metrics("bbbc038_val")
    evaluation = EvaluationTask(task, "bbbc038_test")
    write_json(evaluation.folder / "evaluation.json", {"metrics": metrics})
    with pytest.raises(ResultsError, match="evaluation.json: broken .no metrics on bbbc038_test"):
        evaluation.metrics()


def test_metrics_are_of_any_task(add: Callable) -> None:
    task, _ = add("scratch")
    finish(task, {"bbbc038_val": {"counts": {"MAE": 2.5}}})
    assert task.metrics("bbbc038_val") == {"counts": {"MAE": 2.5}}


def line(iteration: int, **values: float) -> str:
    named = {f"bbbc038_val/segm/{name}": value for name, value in values.items()}
    return json.dumps({"iteration": iteration, "total_loss": 1.0, **named})


@pytest.fixture()
def curve(add: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Of a run of 240 iterations of four images each, with twelve that are annotated, which has left these lines."""
    monkeypatch.setattr(tasks_module, "get_records", lambda name: [{}] * 12)
    task = replace(add("scratch", "SOLVER.IMS_PER_BATCH", 4)[0], work=240)

    def curve(final: float | None, *lines: str) -> list[tuple]:
        finish(task, {"bbbc038_val": {"segm": {"AP": final}}})
        (task.stage_folder / "metrics.json").write_text("\n".join(lines))
        return task.curve("bbbc038_val", "segm", "AP")

    return curve


def test_curves_have_periodic_values_and_the_last(curve: Callable) -> None:
    # A killed run left half a line, and its second try repeats an evaluation.
    lines = [line(79, AP=3.0), line(99), line(79, AP=4.0), line(159, AP=5.0), line(179), '{"iteration": 19']
    assert curve(6.0, *lines) == [(80, pytest.approx(80 / 3), 4.0), (160, pytest.approx(160 / 3), 5.0), (240, 80.0, 6.0)]
    assert curve(6.0, line(19)) == [(240, 80.0, 6.0)]
    assert curve(None, line(79, AP=float("nan"))) == []
