"""What every stage's trainer does: phases of several optimizers, and keeping the best."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase
from torch import nn
from torch.nn.functional import softplus

from cupre_d2.config import default_config
from cupre_d2.engine import OptimizerPhase, StageTrainer
from cupre_d2.engine.results import Metrics
from cupre_d2.errors import ConfigError
from cupre_d2.solver.build import build_optimizer
from tests.engine.test_exact_resume import same

STEPS = 7


class GeneratorLoss(nn.Module):
    def __init__(self, networks: nn.ModuleDict) -> None:
        super().__init__()
        self.networks = networks

    def scores_of_fakes(self, count: int) -> torch.Tensor:
        return self.networks["critic"](self.networks["generator"](torch.randn(count, 2)))

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss_generator": softplus(-self.scores_of_fakes(len(batch))).mean()}


class CriticLoss(GeneratorLoss):
    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        real = softplus(-self.networks["critic"](torch.stack(batch))).mean()
        return {"loss_real": real, "loss_fake": softplus(self.scores_of_fakes(len(batch))).mean()}


class GanPhase:
    """A step of the critic, then one of the generator: two optimizers, two schedules."""

    number = 0

    def __init__(self, cfg: CfgNode, networks: nn.ModuleDict) -> None:
        losses = {"critic": CriticLoss(networks), "generator": GeneratorLoss(networks)}
        self.parts = {
            name: OptimizerPhase.build(0, cfg, loss, build_optimizer(cfg, networks[name]), prefix=f"{name}/")
            for name, loss in losses.items()
        }

    def run_step(self, iteration: int, trainer: TrainerBase) -> None:
        for part in self.parts.values():
            part.run_step(iteration, trainer)

    def reset_data_loader(self, builder: Callable[[], Any]) -> None:
        for part in self.parts.values():
            part.reset_data_loader(builder)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


class GanTrainer(StageTrainer):
    """Stopped before a step; what it is told its evaluations find."""

    def __init__(self, cfg: CfgNode, stop: int = -1, found: list[Metrics] | None = None) -> None:
        networks = nn.ModuleDict({"generator": nn.Linear(2, 3), "critic": nn.Linear(3, 1)})
        self.stop, self.found = stop, found or []
        super().__init__(cfg, networks, {"gan": GanPhase(cfg, networks)}, STEPS)

    def phase_name(self) -> str:
        return "gan"

    def start_phase(self, name: str) -> None:
        batches = torch.randn(STEPS, 4, 3, generator=torch.Generator().manual_seed(1))[self.iter :]
        self.phases[name].reset_data_loader(lambda: [list(batch) for batch in batches])

    def run_step(self) -> None:
        if self.iter == self.stop:
            raise KeyboardInterrupt
        super().run_step()

    def test(self) -> Metrics:
        return self.found[self.iter]


@pytest.fixture()
def configure(tmp_path: Path) -> Callable[..., CfgNode]:
    def make(folder: str = "run", **more: Any) -> CfgNode:
        opts = {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.MAX_ITER": STEPS, "SOLVER.CHECKPOINT_PERIOD": 2, "MODEL.DEVICE": "cpu"}
        opts |= {"SEED": 3, **{key.replace("__", "."): value for key, value in more.items()}}
        cfg = default_config()
        cfg.merge_from_list([item for pair in opts.items() for item in pair])
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        (tmp_path / folder).mkdir(exist_ok=True)
        return cfg

    return make


def train(cfg: CfgNode, stop: int = -1, found: list[Metrics] | None = None) -> GanTrainer:
    torch.manual_seed(0)
    trainer = GanTrainer(cfg, stop, found)
    trainer.resume_or_load()
    with suppress(KeyboardInterrupt):
        trainer.train_stage([])
    return trainer


def final(cfg: CfgNode, name: str = "model_final") -> dict[str, Any]:
    return torch.load(Path(cfg.OUTPUT_DIR) / f"{name}.pth", weights_only=True)


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_two_optimizers_stopped_and_gone_on_with(configure: Callable[..., CfgNode], stop: int) -> None:
    whole, stopped = configure("whole"), configure("stopped")
    trainer = train(whole)
    assert {"critic/lr", "generator/lr", "critic/total_loss", "generator/total_loss"} <= trainer.storage.histories().keys()
    train(stopped, stop)
    assert not Path(stopped.OUTPUT_DIR, "model_final.pth").exists()
    assert train(stopped).start_iter == stop // 2 * 2
    assert same(final(whole), final(stopped)) == []
    state = final(whole)["trainer"]["phases"]["gan"]
    assert all(state[name]["stepper"]["optimizer"]["state"] for name in ("critic", "generator"))


NAN = math.nan


@pytest.mark.parametrize("stop", [-1, 3])
@pytest.mark.parametrize(
    ("higher", "values", "best"),
    [
        (False, [5.0, 3.0, 4.0, NAN, 3.0, 3.5, 9.0], 1),
        (False, [NAN, 3.0, 4.0, 3.5, 2.5, 2.75, 9.0], 4),
        (True, [NAN, -3.0, -4.0, 2.0, 1.0, NAN, 0.0], 3),
    ],
)
def test_the_best_is_what_the_config_says(
    configure: Callable[..., CfgNode], stop: int, higher: bool, values: list[float], best: int
) -> None:
    cfg = configure(DATASETS__TEST=("one", "two"), TEST__EVAL_PERIOD=1, TEST__BEST__DATASET="two")
    cfg.TEST.BEST.TASK, cfg.TEST.BEST.METRIC, cfg.TEST.BEST.HIGHER = "counts", "MAE", higher
    found: list[Metrics] = [{"one": {}, "two": {"counts": {"MAE": value}}} for value in values]
    train(cfg, stop, found)
    trainer = train(cfg, found=found) if stop >= 0 else None
    kept = final(cfg, "model_best")
    assert kept["iteration"] == best and final(cfg)["trainer"]["best"] == values[best]
    assert trainer is None or trainer.best == values[best]


def test_a_metric_that_is_not_there(configure: Callable[..., CfgNode]) -> None:
    cfg = configure(DATASETS__TEST=("one",), TEST__EVAL_PERIOD=1, TEST__BEST__METRIC="MAP")
    with pytest.raises(ConfigError, match="TEST.BEST.METRIC MAP: no metric of .*TASK segm; those there are: AP, AR2000"):
        train(cfg, found=[{"one": {"segm": {"AP": 1.0, "AR2000": 2.0}}}])


def test_settings_of_detectron2_that_training_takes_or_leaves(
    configure: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with caplog.at_level("WARNING"):
        GanTrainer(configure(CUDNN_BENCHMARK=True, TEST__PRECISE_BN__ENABLED=True))
    assert torch.backends.cudnn.benchmark
    assert "TEST.PRECISE_BN.ENABLED True: not done" in caplog.text
