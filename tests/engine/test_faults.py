"""What breaks while training: each ends or goes on as documented, and nothing is lost."""

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from cupre_d2.data.mappers import DetectionMapper
from cupre_d2.engine import pipeline
from cupre_d2.engine.single_phase import DetectionTrainer
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import CheckpointError, ConfigError, TrainingError

STAGE = "configs/mini/stages/coco_pretrain.yaml"


@pytest.fixture()
def cfg(small_datasets: Path, slim: list[str], tmp_path: Path) -> CfgNode:
    more = ["SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.NONFINITE_LIMIT", "3"]
    _, (stage,) = load_stages(STAGE, [*slim, *more, "OUTPUT_DIR", str(tmp_path)])
    stage.folder.mkdir(parents=True)
    return stage.cfg


def trained(cfg: CfgNode, prepare: Callable[[DetectionTrainer], None] = lambda trainer: None) -> DetectionTrainer:
    torch.manual_seed(0)
    trainer = DetectionTrainer(cfg)
    trainer.resume_or_load()
    prepare(trainer)
    trainer.train_stage([])
    return trainer


def elsewhere(cfg: CfgNode, folder: Path) -> CfgNode:
    other = cfg.clone()
    other.defrost()
    other.OUTPUT_DIR = str(folder)
    folder.mkdir()
    return other


def assert_same(one: DetectionTrainer, other: DetectionTrainer) -> None:
    for (name, value), theirs in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(value, theirs), name


def test_full_disk_keeps_the_checkpoint_before(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def fsync(file: int) -> None:
        if list(Path(cfg.OUTPUT_DIR).glob("model_0000003.pth.partial")):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckpointError, match=r"model_0000003.pth.*No space.*0000001.*intact"),
    ):
        patch.setattr(os, "fsync", fsync)
        trained(cfg)
    assert sorted(path.name for path in Path(cfg.OUTPUT_DIR).glob("*.p*")) == ["model_0000001.pth"]
    resumed = trained(cfg)
    assert resumed.start_iter == 2
    assert_same(resumed, trained(elsewhere(cfg, tmp_path / "whole")))


def test_output_that_cannot_be_written(small_datasets: Path, slim: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .*file/out: cannot be written to"):
        pipeline.prepare(STAGE, [*slim, "OUTPUT_DIR", str(tmp_path / "file" / "out")])


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_broken_checkpoint_falls_back_loudly(
    damage: str, cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(trainer: DetectionTrainer) -> None:
        trainer.max_iter = 4

    whole = trained(elsewhere(cfg, tmp_path / "whole"))
    trained(cfg, stop)
    last = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    content = last.read_bytes()
    broken = last.rename(last.with_name("model_0000003.pth"))
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text(broken.name)
    broken.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": content}[damage])
    if damage == "other":
        torch.save({"model": {"stem.weight": torch.zeros(2)}}, broken)
    logging.getLogger("cupre_d2").propagate = True
    with caplog.at_level(logging.ERROR, logger="cupre_d2"):
        resumed = trained(cfg)
    assert "model_0000003.pth cannot be used" in caplog.text
    assert resumed.start_iter == 2
    assert_same(resumed, whole)


def test_no_checkpoint_can_be_used(cfg: CfgNode) -> None:
    Path(cfg.OUTPUT_DIR, "model_0000001.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="none of its checkpoints can be used, as logged; --restart starts over"):
        trained(cfg)


class Poison:
    """Makes the losses of some iterations NaN, and counts the steps."""

    def __init__(self, iterations: set[int], gradient_only: bool = False) -> None:
        self.iterations = iterations
        self.gradient_only = gradient_only
        self.before: list[torch.Tensor] = []

    def __call__(self, trainer: DetectionTrainer) -> None:
        self.trainer = trainer
        forward = trainer.model.forward

        def poisoned(inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            losses = forward(inputs)
            if trainer.model.training and trainer.iter in self.iterations:
                weight = next(iter(trainer.model.parameters()))
                self.before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
                nan = (weight.sum() * 0).sqrt() if self.gradient_only else weight.sum() * float("nan")
                losses = {**losses, "loss_cls_stage0": losses["loss_cls_stage0"] + nan}
            return losses

        trainer.model.forward = poisoned


@pytest.mark.parametrize(("gradient_only", "precision"), [(False, ""), (True, ""), (False, "float16"), (False, "bfloat16")])
def test_a_step_with_nan_is_left_out(gradient_only: bool, precision: str, cfg: CfgNode) -> None:
    if precision:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, precision
    poison = Poison({2}, gradient_only)
    trainer = trained(cfg, poison)
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    (entry,) = map(json.loads, (Path(cfg.OUTPUT_DIR) / "nonfinite.jsonl").read_text().splitlines())
    assert entry["iteration"] == 2 and len(entry["files"]) == 2 and all(Path(file).is_file() for file in entry["files"])
    assert gradient_only or entry["losses"]["loss_cls_stage0"] == "nan"


def test_nan_in_a_row_ends_training_with_the_weights_of_before(cfg: CfgNode) -> None:
    poison = Poison({3, 4, 5})
    with pytest.raises(TrainingError, match=r"iteration 5: 3 steps in a row .*nonfinite.jsonl"):
        trained(cfg, poison)
    for before, parameter in zip(poison.before, poison.trainer.model.parameters(), strict=True):
        assert torch.equal(before, parameter)
    assert len((Path(cfg.OUTPUT_DIR) / "nonfinite.jsonl").read_text().splitlines()) == 3


def test_a_loaders_process_that_dies(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: Any) -> Any:
        os._exit(1)

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 1
    monkeypatch.setattr(DetectionMapper, "__call__", die)
    with pytest.raises(TrainingError, match=r"iteration 0: DataLoader worker .* exited unexpectedly"):
        trained(cfg)


def test_what_a_killed_process_left_is_removed(cfg: CfgNode) -> None:
    left = Path(cfg.OUTPUT_DIR) / "model_0000001.pth.partial"
    left.write_bytes(b"half")
    trained(cfg)
    assert not left.exists()
    names = sorted(path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth"))
    assert names == ["model_0000001.pth", "model_0000003.pth", "model_final.pth"]


def test_metrics_are_there_once(cfg: CfgNode) -> None:
    """Lines after the checkpoint that a run goes on from, and one that a kill broke off, are measured again."""
    path = Path(cfg.OUTPUT_DIR) / "metrics.json"
    path.write_text('{"iteration": 0, "total_loss": 1.0}\n{"iteration": 3, "total')
    trained(cfg)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    iterations = [line["iteration"] for line in lines]
    assert iterations == sorted(set(iterations)) and iterations[-1] == 5
