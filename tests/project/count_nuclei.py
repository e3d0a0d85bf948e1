"""A project of its own: counts the nuclei of BBBC005 by regression, on this package's engine, with no file of it touched.

`python count_nuclei.py --config-file configs/mini/counting.yaml --datasets nuclei.yaml` trains; `python count_nuclei.py
reproduce --table counting ...` makes its table: widths x seeds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from markupsafe import Markup
from torch import nn

from cupre_d2.commands import run
from cupre_d2.config import register_config
from cupre_d2.data import get_records
from cupre_d2.data.loaders import build_detection_loader
from cupre_d2.engine import TRAINER_REGISTRY, OptimizerPhase, StageTrainer
from cupre_d2.engine.preflight import check_settings, check_tests
from cupre_d2.engine.single_phase import build_network
from cupre_d2.evaluation.build import register_evaluator
from cupre_d2.experiments.blocks import Block, Plot
from cupre_d2.experiments.frames import text_table, where, with_spread
from cupre_d2.experiments.plots import bars
from cupre_d2.experiments.tables import SEEDS, Experiment, FinishedTable, Run, Table, Values, register_table
from cupre_d2.report import PipelineResults, register_section
from cupre_d2.solver.build import build_optimizer


@register_config
def add_keys(cfg: CfgNode) -> None:
    cfg.COUNTER = CfgNode()
    # Channels of the first convolution; each of the following two has twice as many.
    cfg.COUNTER.WIDTH = 4


@META_ARCH_REGISTRY.register()
class NucleusCounter(nn.Module):
    """Three strided convolutions and a mean. In training, images with "count" become {"loss_count"}; else [{"count"}]."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.device = torch.device(cfg.MODEL.DEVICE)
        widths = [3, *(cfg.COUNTER.WIDTH * 2**step for step in range(3))]
        steps = [nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:], strict=False)]
        self.features = nn.Sequential(*(layer for step in steps for layer in (step, nn.ReLU())))
        self.head = nn.Linear(widths[-1], 1)
        self.to(self.device)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        images = torch.stack([one["image"] for one in batched_inputs]).to(self.device) / 255
        counts = self.head(self.features(images).mean((2, 3)))[:, 0]
        if not self.training:
            return [{"count": float(count)} for count in counts]
        true = torch.tensor([float(one["count"]) for one in batched_inputs], device=self.device)
        return {"loss_count": nn.functional.smooth_l1_loss(counts, true)}


@register_evaluator("count", units={"count": "nuclei"})
class CountEvaluator(DatasetEvaluator):
    """MAE, the mean absolute error of counts."""

    def __init__(self, cfg: CfgNode, dataset_name: str) -> None:
        self._true = {record["image_id"]: record["count"] for record in get_records(dataset_name)}
        self.reset()

    def reset(self) -> None:
        self._errors: list[float] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        self._errors += [abs(o["count"] - self._true[i["image_id"]]) for i, o in zip(inputs, outputs, strict=True)]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        errors = [error for part in comm.gather(self._errors) for error in part]
        return {"count": {"MAE": float(np.mean(errors))}} if comm.is_main_process() else None


@TRAINER_REGISTRY.register()
class CountTrainer(StageTrainer):
    """Regression of the "count" of DATASETS.TRAIN."""

    def __init__(self, cfg: CfgNode) -> None:
        model = build_network(cfg)
        phase = OptimizerPhase.build(0, cfg, model, build_optimizer(cfg, model))
        super().__init__(cfg, model, {"count": phase}, cfg.SOLVER.MAX_ITER)

    @classmethod
    def plan(cls, cfg: CfgNode) -> int:
        check_settings(cfg)
        check_tests(cfg)
        return cfg.SOLVER.MAX_ITER

    def phase_name(self) -> str:
        return "count"

    def start_phase(self, name: str) -> None:
        records = [record for dataset in self.cfg.DATASETS.TRAIN for record in get_records(dataset)]
        loader = build_detection_loader(self.cfg, records, (self.seed,), self.iter)
        self.phases[name].reset_data_loader(lambda: loader)


def count_section(pipeline: PipelineResults) -> Markup | None:
    scores = [f"{name}: {tasks['count']['MAE']:.2f}" for name, tasks in pipeline.results["metrics"].items()]
    return Markup("<h2>Counting</h2><p>Nuclei off by, on average: {}</p>").format("; ".join(scores))


register_section("counting", count_section)


class Counting(Table):
    """Widths x seeds of the counter, on the target's validation images."""

    title = "counting nuclei"
    dataset = "nuclei"
    lists = {"widths": Values("width", (int,), lambda value: value > 0, "more than 0"), "seeds": SEEDS}
    configs = Path(__file__).parent / "configs"

    def stages(self, experiment: Experiment, run: Run) -> Any:
        return experiment.stages("counting", {"SEED": run.seed, "COUNTER.WIDTH": run.width})

    def blocks(self, finished: FinishedTable) -> list[Block]:
        errors = where(finished.frame, metric="MAE")
        shown = text_table(errors, {"width": "width"}, {"MAE": lambda rows: with_spread(rows["value"], ".2f")})
        return ["Mean absolute error, nuclei.", shown, Plot(bars(errors, "width", "MAE"), ".png", "MAE by width")]


register_table("counting", Counting())

if __name__ == "__main__":
    run("train")
