import copy
import math
import warnings
from collections import deque
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling import Backbone
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional

from cupre_d2 import add_cupre_config
from cupre_d2.engine.distributed import parallel
from cupre_d2.errors import ConfigError
from cupre_d2.modeling.backbone.resnest import ResNeSt
from cupre_d2.modeling.meta_arch.moco import MoCo, embedding_std, info_nce_logits

DIM = 8


class TinyEncoder(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.coarse = nn.Conv2d(6, 10, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = torch.relu(self.norm(self.fine(x)))
        return {"res2": fine, "res3": torch.relu(self.coarse(fine))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=6, stride=2), "res3": ShapeSpec(channels=10, stride=4)}


def make(**settings: object) -> MoCo:
    torch.manual_seed(0)
    return MoCo(query_encoder=TinyEncoder(), **{"dim": DIM, "queue_size": 12, **settings})


def batch(size: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 256, (size, 2, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [{"query": pair[0], "key": pair[1]} for pair in views]


@pytest.mark.parametrize(("size", "negatives"), [(1, 5), (4, 1), (7, 30)])
def test_info_nce_against_a_loop(size: int, negatives: int) -> None:
    generator = torch.Generator().manual_seed(size)
    query, key, queue = (
        functional.normalize(torch.randn(n, DIM, generator=generator, dtype=torch.float64), dim=1)
        for n in (size, size, negatives)
    )
    expected = 0.0
    for q, k in zip(query, key, strict=True):
        positive = math.exp(sum(float(a * b) for a, b in zip(q, k, strict=True)) / 0.2)
        rest = sum(math.exp(float((q * n).sum()) / 0.2) for n in queue)
        expected -= math.log(positive / (positive + rest)) / size
    logits = info_nce_logits(query, key, queue, 0.2)
    loss = functional.cross_entropy(logits, torch.zeros(size, dtype=torch.long))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [5, 5, 5], [1, 7, 3], [12], [13, 2], [30, 5]])
def test_queue_against_a_deque(sizes: list[int]) -> None:
    moco = make()
    expected = deque(moco.queue.tolist(), maxlen=12)
    for number, size in enumerate(sizes):
        keys = torch.full((size, DIM), float(number)) + torch.arange(size)[:, None] / 100
        moco._enqueue(keys)
        expected.extend(keys.tolist())
    oldest = int(moco.queue_pointer)
    assert torch.allclose(moco.queue.roll(-oldest, 0), torch.tensor(list(expected)))


def test_enqueues_its_normalised_keys_after_the_logits() -> None:
    moco = make()
    before = moco.queue.clone()
    moco(batch(5))
    assert torch.equal(moco.queue[5:], before[5:])
    assert not torch.equal(moco.queue[:5], before[:5])
    assert torch.allclose(moco.queue.norm(dim=1), torch.ones(12), atol=1e-6)
    assert int(moco.queue_pointer) == 5


def test_key_encoder_is_a_moving_average_of_parameters_only() -> None:
    moco = make(momentum=0.9)
    with torch.no_grad():
        for parameter in moco.backbone["bottom_up"].parameters():
            parameter.add_(1.0)
    moco.backbone["bottom_up"].norm.running_mean.fill_(1e6)
    query = [p.detach().clone() for p in moco.backbone["bottom_up"].parameters()]
    before = [p.detach().clone() for p in moco.key_encoder.parameters()]
    moco(batch(4))
    for q, old, new in zip(query, before, moco.key_encoder.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * q, atol=1e-6)
    assert moco.key_encoder.norm.running_mean.abs().max() < 1e3


def test_gradients_reach_the_query_side_only() -> None:
    moco = make()
    moco(batch(4))["loss_contrastive"].backward()
    assert all(p.grad is not None for p in moco.backbone.parameters())
    assert all(p.grad is not None for p in moco.projector.parameters())
    followers = [*moco.key_encoder.parameters(), *moco.key_projector.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in followers)


def test_query_encoder_is_shared_and_named_as_in_a_detector() -> None:
    encoder = TinyEncoder()
    moco = MoCo(query_encoder=encoder, dim=DIM, queue_size=4)
    assert moco.backbone["bottom_up"] is encoder
    assert "backbone.bottom_up.fine.weight" in moco.state_dict()
    assert "queue" in moco.state_dict()
    assert "pixel_mean" not in moco.state_dict()


def test_reset_makes_the_key_encoder_equal() -> None:
    moco = make()
    with torch.no_grad():
        for parameter in moco.backbone.parameters():
            parameter.mul_(2)
    moco.reset_key_encoder()
    pairs = zip(moco.backbone["bottom_up"].parameters(), moco.key_encoder.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) and ours is not theirs for ours, theirs in pairs)


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp", 2)])
def test_projectors(kind: str, layers: int) -> None:
    moco = make(projector=kind)
    linear = [module for module in moco.projector.modules() if isinstance(module, nn.Linear)]
    assert (len(linear), linear[0].in_features, linear[-1].out_features) == (layers, 10, DIM)


def test_logs_loss_accuracy_and_collapse() -> None:
    moco = make()
    with EventStorage() as storage:
        moco(batch(4))
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert 0 <= latest["contrastive_accuracy"] <= 1
    assert latest["embedding_std"] > 0


def test_collapse_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = functional.normalize(torch.randn(4000, 64, generator=generator), dim=1)
    assert embedding_std(spread).item() == pytest.approx(1, abs=0.02)
    assert embedding_std(spread[:1].repeat(10, 1)).item() == pytest.approx(0, abs=1e-6)


def test_a_collapsed_encoder_is_never_right() -> None:
    moco = make(projector="linear")
    for projector in (moco.projector, moco.key_projector):
        nn.init.zeros_(projector.weight)
        nn.init.ones_(projector.bias)
    with EventStorage() as storage:
        for step in range(3):
            moco(batch(4, step))
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["contrastive_accuracy"] == 0
    assert latest["embedding_std"] == pytest.approx(0, abs=1e-6)


def test_evaluation_embeds_and_changes_nothing() -> None:
    moco = make().eval()
    before = {name: tensor.clone() for name, tensor in moco.state_dict().items()}
    outputs = moco([{"query": inputs["query"]} for inputs in batch(3)])
    assert torch.allclose(torch.stack([output["embedding"] for output in outputs]).norm(dim=1), torch.ones(3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in moco.state_dict().items())


def _train_one_step(rank: int, file: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    seed_all_rng(7 + rank)
    moco = MoCo(query_encoder=TinyEncoder(), dim=DIM, queue_size=12)
    network = parallel(moco, "cpu")
    torch.save(moco.queue, f"{file}_start_{rank}")
    for step in range(2):
        network(batch(4, 2 * step + rank))["loss_contrastive"].backward()
    torch.save(moco.state_dict(), f"{file}_end_{rank}")
    comm.synchronize()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_share_one_queue(tmp_path: Path) -> None:
    file = tmp_path / "rendezvous"
    torch.multiprocessing.spawn(_train_one_step, (str(file),), nprocs=2)
    first, second = (torch.load(f"{file}_start_{rank}") for rank in range(2))
    assert torch.equal(first, second)
    ends = [torch.load(f"{file}_end_{rank}") for rank in range(2)]
    # Two steps of 2 x 4 keys in a queue of 12: all are new, the first four overwritten.
    assert not (ends[0]["queue"] == first).all(1).any()
    assert torch.equal(ends[0]["queue"], ends[1]["queue"])
    assert int(ends[0]["queue_pointer"]) == int(ends[1]["queue_pointer"]) == 4


class Watched(TinyEncoder):
    """Notes the mean of each image of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[float]] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.append(x.mean((1, 2, 3)).tolist())
        return super().forward(x)


def test_batch_norms_see_parts_and_the_keys_parts_are_drawn() -> None:
    torch.manual_seed(0)
    moco = MoCo(query_encoder=Watched(), dim=DIM, queue_size=12, bn_splits=8)
    inputs = batch(12)
    moco(inputs)
    queries, keys = moco.backbone["bottom_up"].calls, moco.key_encoder.calls
    # Eight parts would have less than four images each.
    assert [len(part) for part in queries] == [len(part) for part in keys] == [4, 4, 4]
    expected = {view: [item[view].float().mean().item() for item in inputs] for view in ("query", "key")}
    assert sum(queries, []) == pytest.approx(expected["query"])
    assert sorted(sum(keys, [])) == pytest.approx(sorted(expected["key"]))
    assert sum(keys, []) != pytest.approx(expected["key"])


def test_keys_come_back_in_the_images_order() -> None:
    moco = make(bn_splits=3)
    images = moco._stack(batch(12), "key")
    moco.key_encoder.norm.eval()
    with torch.no_grad():
        torch.testing.assert_close(moco._keys(images), moco._embed(moco.key_encoder, moco.key_projector, images))


def test_norms_of_the_key_encoder_are_never_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    encoder = ResNeSt(14, width_multiplier=0.125, norm="naiveSyncBN")
    moco = MoCo(query_encoder=encoder, dim=DIM, queue_size=12)
    assert any(isinstance(module, NaiveSyncBatchNorm) for module in encoder.modules())
    assert not any(isinstance(module, NaiveSyncBatchNorm) for module in moco.key_encoder.modules())
    assert moco.key_encoder.state_dict().keys() == encoder.state_dict().keys()


def test_other_norms_see_the_whole_batch() -> None:
    torch.manual_seed(0)
    encoder = Watched()
    encoder.norm = nn.GroupNorm(2, 6)
    moco = MoCo(query_encoder=encoder, dim=DIM, queue_size=12)
    inputs = batch(8)
    moco(inputs)
    assert moco.key_encoder.calls[0] == pytest.approx([item["key"].float().mean().item() for item in inputs])
    assert [len(part) for part in encoder.calls] == [8]


def test_forwards_of_one_step_move_keys_and_queue_once() -> None:
    encoder = Watched()
    encoder.norm = nn.GroupNorm(2, 6)
    whole = MoCo(query_encoder=encoder, dim=DIM, queue_size=12, momentum=0.9)
    parts = copy.deepcopy(whole)
    parts.forwards_per_step = 2
    with torch.no_grad():
        for moco in (whole, parts):
            next(moco.backbone["bottom_up"].parameters()).add_(1)
    inputs = batch(8)
    whole(inputs)
    before = parts.queue.clone()
    parts(inputs[:4])
    assert torch.equal(parts.queue, before)
    parts(inputs[4:])
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()))


def test_warns_of_a_queue_longer_than_the_data(caplog: pytest.LogCaptureFixture) -> None:
    moco = make()
    moco.warn_if_queue_exceeds(12)
    assert not caplog.text
    moco.warn_if_queue_exceeds(11)
    assert "QUEUE_SIZE 12 exceeds the 11 unlabeled images" in caplog.text


def test_learns_to_tell_images_apart() -> None:
    moco = make(queue_size=64, momentum=0.9, bn_splits=2)
    optimizer = torch.optim.Adam([p for p in moco.parameters() if p.requires_grad], lr=3e-3)
    images = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 255
    losses, accuracies = [], []
    for step in range(60):
        noise = torch.randn(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(step)) * 4
        pairs = [{"query": images[i] + noise[0, i], "key": images[i] + noise[1, i]} for i in range(16)]
        with EventStorage() as storage:
            loss = moco([{name: (view - 128) / 64 for name, view in pair.items()} for pair in pairs])["loss_contrastive"]
        accuracies.append(storage.latest()["contrastive_accuracy"][0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[5:10])
    assert sum(accuracies[-5:]) > 1.3 * sum(accuracies[5:10])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"queue_size": 0}, "QUEUE_SIZE"),
        ({"momentum": 1.5}, "MOMENTUM"),
        ({"temperature": 0.0}, "TEMPERATURE"),
        ({"bn_splits": 0}, "BN_SPLITS 0"),
        ({"forwards_per_step": 0}, "ACCUMULATE 0"),
        ({"projector": "quadratic"}, "PROJECTOR"),
    ],
)
def test_bad_settings(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"MODEL.MOCO.*{key}"):
        make(**settings)


def test_from_config_takes_the_backbone_without_its_neck() -> None:
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnest_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 14
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 0.125
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    moco = MoCo(cfg)
    assert moco.feature == "res5"
    assert "backbone.bottom_up.res5.0.conv2.fc1.weight" in moco.state_dict()
    assert not any("fpn" in name for name in moco.state_dict())
