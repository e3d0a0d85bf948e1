import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from cupre_d2 import add_cupre_config
from cupre_d2.data.loaders import shard
from cupre_d2.engine.alternating import AlternatingTrainer, Schedule, backbone_policy
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
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 16
    schedule = Schedule.from_config(cfg, num_unlabeled=9666, num_annotated=118287)
    assert (schedule.rounds, schedule.moco_iters, schedule.coco_iters) == (10, 38, 740)


@pytest.mark.parametrize(
    ("policy", "enabled", "expected"),
    [("l2sp", True, "l2sp"), ("l2sp", False, "free"), ("free", True, "free"), ("frozen", True, "frozen")],
)
def test_policy(policy: str, enabled: bool, expected: str) -> None:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.AMT2.BACKBONE_POLICY = policy
    cfg.SOLVER.L2SP.ENABLED = enabled
    assert backbone_policy(cfg) == expected


def test_unknown_policy() -> None:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.AMT2.BACKBONE_POLICY = "thawed"
    with pytest.raises(ConfigError, match="'thawed': expected one of l2sp, free, frozen"):
        backbone_policy(cfg)


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
    amt2_cfg.AMT2.BACKBONE_POLICY = "frozen"
    _, recorder = train(amt2_cfg)
    assert [recorder.moved(iteration) for iteration in range(4)] == [True, False, True, False]


def test_free_policy_has_no_l2sp_loss(amt2_cfg: CfgNode) -> None:
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
    assert torch.equal(resumed.moco.queue, trainer.moco.queue)
    assert resumed.clock.steps == 2
    assert resumed.l2_sp is not None and trainer.l2_sp is not None
    saved, before = resumed.l2_sp.state_dict(), trainer.l2_sp.state_dict()
    assert all(torch.equal(saved[name], before[name]) for name in before)
    resumed.train_stage([])
    assert (resumed.iter, resumed.clock.steps) == (8, 8)
