import pytest
import torch
from detectron2.config import CfgNode

from cupre_d2.config import default_config
from cupre_d2.data.loaders import shard
from cupre_d2.engine.alternating import AlternatingTrainer, Schedule, coco_phase_config, moco_phase_config
from cupre_d2.errors import ConfigError, DatasetError


@pytest.mark.parametrize(("count", "shards"), [(10, 10), (23, 10), (500, 3), (7, 2)])
def test_shards_are_disjoint_and_cover(count: int, shards: int) -> None:
    records = [{"image_id": index} for index in range(count)]
    parts = [shard(records, index, shards, seed=5) for index in range(shards)]
    ids = [record["image_id"] for part in parts for record in part]
    assert sorted(ids) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_follow_the_seed() -> None:
    records = [{"image_id": index} for index in range(100)]
    assert shard(records, 0, 10, seed=1) == shard(records, 0, 10, seed=1)
    assert shard(records, 0, 10, seed=1) != shard(records, 0, 10, seed=2)


def test_more_shards_than_images() -> None:
    with pytest.raises(DatasetError, match="AMT2.ROUNDS 10: more shards than training images"):
        shard([{"image_id": 0}], 0, 10, seed=0)


def test_schedule_locates_every_iteration() -> None:
    schedule = Schedule(rounds=3, moco_iters=2, coco_iters=5)
    expected = [
        (round_, phase, iteration)
        for round_ in range(3)
        for phase, length in (("moco", 2), ("coco", 5))
        for iteration in range(length)
    ]
    assert [tuple(schedule.locate(iteration)) for iteration in range(schedule.total)] == expected
    ends = [iteration for iteration in range(schedule.total) if schedule.ends_phase(iteration)]
    assert ends == [1, 6, 8, 13, 15, 20]


def test_phases_of_length_zero_are_one_pass() -> None:
    cfg = default_config()
    cfg.SOLVER.IMS_PER_BATCH = 16
    schedule = Schedule.from_config(cfg, num_unlabeled=9666, num_annotated=118287)
    assert (schedule.rounds, schedule.moco_iters, schedule.coco_iters) == (10, 38, 740)


def test_the_moco_phase_has_a_whole_solver() -> None:
    """Its steps count the iterations of all MoCo phases, and nothing of SOLVER's reaches it but what is the stage's."""
    cfg = default_config()
    moco = {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (4, 6), "GAMMA": 0.5, "WARMUP_METHOD": "constant"}
    of_moco = [item for key, value in moco.items() for item in (f"AMT2.MOCO_SOLVER.{key}", value)]
    cfg.merge_from_list([*of_moco, "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.AMP.ENABLED", True, "SOLVER.GAMMA", 0.3])
    solver = moco_phase_config(cfg, 8).SOLVER
    assert {key: solver[key] for key in moco} == moco
    assert (solver.MAX_ITER, solver.CLIP_GRADIENTS.ENABLED, solver.AMP.ENABLED) == (8, False, True)
    assert coco_phase_config(cfg, 8).SOLVER.GAMMA == 0.3


def test_steps_of_the_moco_phase(amt2_cfg: CfgNode) -> None:
    """The learning rate falls at the second MoCo step, which is the third of all."""
    amt2_cfg.defrost()
    solver = amt2_cfg.AMT2.MOCO_SOLVER
    solver.LR_SCHEDULER_NAME, solver.STEPS, solver.WARMUP_ITERS, solver.BASE_LR = "WarmupMultiStepLR", (1,), 0, 0.01
    trainer, _ = train(amt2_cfg)
    rates = {name: history.values() for name, history in trainer.storage.histories().items() if name.endswith("lr")}
    assert [iteration for _, iteration in rates["moco/lr"]] == [0, 2]
    assert [value for value, _ in rates["moco/lr"]] == pytest.approx([0.01, 0.001])
    assert [iteration for _, iteration in rates["coco/lr"]] == [1, 3]
    losses = {name for name in trainer.storage.histories() if name.endswith("total_loss")}
    assert losses == {"moco/total_loss", "coco/total_loss"}


def test_frozen_and_held_at_once(amt2_cfg: CfgNode) -> None:
    amt2_cfg.defrost()
    amt2_cfg.AMT2.FREEZE_BACKBONE = True
    with pytest.raises(ConfigError, match="AMT2.FREEZE_BACKBONE True and SOLVER.L2SP.ENABLED True"):
        AlternatingTrainer.plan(amt2_cfg)


class Recorder:
    """Runs a trainer and keeps the backbone's weights after each step."""

    def __init__(self, trainer: AlternatingTrainer) -> None:
        self.trainer = trainer
        self.weights: list[list[torch.Tensor]] = [self._snapshot()]
        step = trainer.run_step

        def run_step() -> None:
            step()
            self.weights.append(self._snapshot())

        trainer.run_step = run_step  # type: ignore[method-assign]

    def _snapshot(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.trainer.backbone.parameters()]

    def moved(self, iteration: int) -> bool:
        before, after = self.weights[iteration], self.weights[iteration + 1]
        return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def train(cfg: CfgNode) -> tuple[AlternatingTrainer, Recorder]:
    trainer = AlternatingTrainer(cfg)
    trainer.resume_or_load()
    recorder = Recorder(trainer)
    trainer.train_stage([])
    return trainer, recorder


def test_query_encoder_is_the_detectors_backbone(amt2_cfg: CfgNode) -> None:
    trainer = AlternatingTrainer(amt2_cfg)
    assert trainer.moco is not None
    query = dict(trainer.moco.backbone["bottom_up"].named_parameters())
    detector = dict(trainer.model.backbone.bottom_up.named_parameters())
    assert query.keys() == detector.keys()
    assert all(query[name] is detector[name] for name in query)


def test_both_phases_train_the_backbone_and_anchors_follow_moco(amt2_cfg: CfgNode) -> None:
    trainer, recorder = train(amt2_cfg)
    assert [recorder.moved(iteration) for iteration in range(4)] == [True, True, True, True]
    after_last_moco = dict(zip([n for n, _ in trainer.backbone.named_parameters()], recorder.weights[3], strict=True))
    assert trainer.l2_sp is not None
    anchors = {name.split("bottom_up.")[-1]: tensor for name, tensor in trainer.l2_sp.state_dict().items()}
    assert anchors and all(torch.equal(tensor, after_last_moco[name]) for name, tensor in anchors.items())


def test_frozen_backbone_moves_in_moco_only(amt2_cfg: CfgNode) -> None:
    amt2_cfg.defrost()
    amt2_cfg.AMT2.FREEZE_BACKBONE, amt2_cfg.SOLVER.L2SP.ENABLED = True, False
    _, recorder = train(amt2_cfg)
    assert [recorder.moved(iteration) for iteration in range(4)] == [True, False, True, False]


def test_without_l2sp_there_is_no_such_loss(amt2_cfg: CfgNode) -> None:
    amt2_cfg.defrost()
    amt2_cfg.SOLVER.L2SP.ENABLED = False
    trainer, recorder = train(amt2_cfg)
    assert trainer.l2_sp is None
    assert recorder.moved(1)


def test_resumes_in_the_phase_it_was_killed_in(amt2_cfg: CfgNode) -> None:
    class Killed(Exception):
        pass

    amt2_cfg.defrost()
    amt2_cfg.AMT2.COCO_ITERS = 3
    amt2_cfg.SOLVER.CHECKPOINT_PERIOD = 2
    trainer = AlternatingTrainer(amt2_cfg)
    trainer.resume_or_load()
    step = trainer.run_step

    def die_at_three() -> None:
        if trainer.iter == 3:
            raise Killed
        step()

    trainer.run_step = die_at_three  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.train_stage([])

    resumed = AlternatingTrainer(amt2_cfg)
    resumed.resume_or_load()
    assert resumed.start_iter == 2
    assert tuple(resumed.schedule.locate(resumed.start_iter)) == (0, "coco", 1)
    assert resumed.moco is not None and trainer.moco is not None
    assert torch.equal(resumed.moco.queue, trainer.moco.queue)
    assert resumed.clock.steps == 2
    assert resumed.l2_sp is not None and trainer.l2_sp is not None
    saved, before = resumed.l2_sp.state_dict(), trainer.l2_sp.state_dict()
    assert all(torch.equal(saved[name], before[name]) for name in before)
    resumed.train_stage([])
    assert (resumed.iter, resumed.clock.steps) == (8, 8)


@pytest.mark.parametrize("changed", [{}, {"AMT2.ROUNDS": 3}, {"SOLVER.IMS_PER_BATCH": 4}, {"AMT2.COCO_ITERS": 0}])
def test_the_control_without_moco_has_as_many_coco_iterations(amt2_cfg: CfgNode, changed: dict[str, int]) -> None:
    amt2_cfg.defrost()
    amt2_cfg.merge_from_list([item for pair in changed.items() for item in pair])
    control = amt2_cfg.clone()
    control.merge_from_list(["AMT2.MOCO", False, "SOLVER.L2SP.ENABLED", False, "DATASETS.UNLABELED", ()])
    moco_iterations = amt2_cfg.AMT2.ROUNDS * amt2_cfg.AMT2.MOCO_ITERS
    assert AlternatingTrainer.plan(control) == AlternatingTrainer.plan(amt2_cfg) - moco_iterations > 1


def test_the_control_learns_from_all_shards(amt2_cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    amt2_cfg.defrost()
    amt2_cfg.merge_from_list(["AMT2.MOCO", False, "SOLVER.L2SP.ENABLED", False, "DATASETS.UNLABELED", ()])
    amt2_cfg.AMT2.COCO_ITERS = 2
    with caplog.at_level("INFO", logger="cupre_d2"):
        trainer, recorder = train(amt2_cfg)
    assert trainer.moco is None and trainer.max_iter == 4
    assert all(recorder.moved(iteration) for iteration in range(4))
    assert [f"AMT² round {number}: shard of 6 of 12" in caplog.text for number in (1, 2, 3)] == [True, True, False]
    assert {"total_loss", "lr"} <= trainer.storage.histories().keys()
