"""Precisions and parts of a batch."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from cupre_d2.config import default_config
from cupre_d2.engine.phases import Stepper
from cupre_d2.engine.single_phase import DetectionTrainer, MoCoTrainer
from cupre_d2.errors import TrainingError


class Linear(nn.Module):
    """Mean squared error of a linear map: a mean over the batch, as most losses."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 1)
        self.sizes: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, inputs: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        self.sizes.append(len(inputs))
        output = self.map(torch.stack([item["x"] for item in inputs]))
        self.dtypes.add(output.dtype)
        return {"loss": (output.float() - 1).square().mean()}


def settings(tmp_path: Path, **keys: object) -> CfgNode:
    cfg = default_config()
    opts = {"MODEL.DEVICE": "cpu", "OUTPUT_DIR": str(tmp_path), **keys}
    cfg.merge_from_list([item for pair in opts.items() for item in pair])
    return cfg


def stepped(cfg: CfgNode, batches: list[list[dict[str, torch.Tensor]]]) -> Linear:
    torch.manual_seed(0)
    model = Linear()
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), 0.1), cfg)
    stepper.reset_data_loader(lambda: batches)
    with EventStorage():
        for stepper.iter in range(len(batches)):
            stepper.run_step()
    return model


def random_batches(size: int) -> list[list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    return [[{"x": torch.randn(3, generator=generator)} for _ in range(size)] for _ in range(3)]


@pytest.mark.parametrize(("parts", "sizes"), [(2, [2, 3]), (4, [1, 1, 1, 2]), (5, [1, 1, 1, 1, 1]), (8, [1, 1, 1, 1, 1])])
def test_parts_of_a_batch_make_the_same_step(parts: int, sizes: list[int], tmp_path: Path) -> None:
    batches = random_batches(5)
    whole = stepped(settings(tmp_path), batches)
    model = stepped(settings(tmp_path, **{"SOLVER.ACCUMULATE": parts}), batches)
    assert model.sizes == sizes * 3
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_precision(tmp_path: Path) -> None:
    batches = random_batches(4)
    whole = stepped(settings(tmp_path), batches)
    model = stepped(settings(tmp_path, **{"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"}), batches)
    assert model.dtypes == {torch.bfloat16} and whole.dtypes == {torch.float32}
    assert model.map.weight.dtype == torch.float32
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)


def test_float16_overflow_lowers_the_scale_and_goes_on(tmp_path: Path) -> None:
    cfg = settings(tmp_path, **{"SOLVER.AMP.ENABLED": True, "SOLVER.NONFINITE_LIMIT": 1})
    torch.manual_seed(0)
    model = Linear()
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), 1e-6), cfg)
    # The loss, in float32, is finite; its gradient times the scale of 65536 is more than float16 holds.
    stepper.reset_data_loader(lambda: [[{"x": torch.full((3,), 100.0)}] * 2] * 20)
    with EventStorage():
        scales = []
        for stepper.iter in range(20):
            stepper.run_step()
            scales.append(stepper.state_dict()["scaler"]["scale"])
    assert scales[-1] < scales[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not (tmp_path / "nonfinite.jsonl").exists()
    state = stepper.state_dict()
    other = Stepper(Linear(), torch.optim.SGD(model.parameters(), 1e-6), cfg)
    other.load_state_dict(state)
    assert other.state_dict()["scaler"] == state["scaler"]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("phase", ["detection", "moco"])
def test_both_losses_train_in_half_precision(name: str, phase: str, amt2_cfg: CfgNode) -> None:
    cfg = amt2_cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = True, name
    cfg.SOLVER.MAX_ITER = 3
    if phase == "moco":
        cfg.MODEL.META_ARCHITECTURE = "MoCo"
        cfg.DATASETS.TEST = ()
    torch.manual_seed(0)
    trainer = (MoCoTrainer if phase == "moco" else DetectionTrainer)(cfg)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.resume_or_load()
    trainer.train_stage([])
    after = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert all(parameter.isfinite().all() for parameter in after)
    assert sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True)) > len(after) / 2
    assert not (Path(cfg.OUTPUT_DIR) / "nonfinite.jsonl").exists()


def test_float16_gradients_that_stay_nan_end_training(tmp_path: Path) -> None:
    """The scaler alone would leave out every step for ever."""
    cfg = settings(tmp_path, **{"SOLVER.AMP.ENABLED": True, "SOLVER.NONFINITE_LIMIT": 3})
    model = Linear()
    model.map.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), 0.1), cfg)
    stepper.reset_data_loader(lambda: random_batches(2) * 20)
    with EventStorage(), pytest.raises(TrainingError, match="3 steps in a row"):
        for stepper.iter in range(60):
            stepper.run_step()
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 3
