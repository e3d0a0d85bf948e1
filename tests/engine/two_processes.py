"""Trains AMT² in one process or in several and writes what came of it; for test_distributed.py.

python two_processes.py PROCESSES OUTPUT KEY VALUE ...
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import roi_heads
from detectron2.utils import comm

from cupre_d2.engine import distributed
from cupre_d2.engine.alternating import AlternatingTrainer
from cupre_d2.engine.stages import load_stages
from cupre_d2.randomness import seed_everything


def first_ones(labels: torch.Tensor, count: int, share: float, background: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for Detectron2's random choice of proposals, which it draws a process and not an image."""
    positive = torch.nonzero((labels != -1) & (labels != background)).squeeze(1)[: int(count * share)]
    negative = torch.nonzero(labels == background).squeeze(1)[: count - len(positive)]
    return positive, negative


def train(output: str, opts: list[str]) -> None:
    rpn.subsample_labels = roi_heads.subsample_labels = first_ones
    seed_everything(0)
    _, (stage,) = load_stages("configs/mini/stages/amt2.yaml", [*opts, "OUTPUT_DIR", output])
    stage.folder.mkdir(parents=True, exist_ok=True)
    trainer = AlternatingTrainer(stage.cfg)
    trainer.resume_or_load()
    losses: list[dict[str, float]] = []
    for name, phase in trainer.phases.items():
        write = phase.stepper._write_metrics

        def keep(values: dict[str, Any], *args: Any, write: Any = write, total: str = f"{name}/total_loss") -> None:
            write(values, *args)
            if comm.is_main_process():
                latest = trainer.storage.latest()
                losses.append({name: latest[name][0] for name in (*values, total) if name in latest})

        phase.stepper._write_metrics = keep
    trainer.train_stage([])
    queues = comm.gather(trainer.moco.queue)
    if comm.is_main_process():
        Path(output, "losses.json").write_text(json.dumps(losses))
        torch.save({"queues": queues, "model": trainer.model.state_dict()}, Path(output, "end.pth"))


if __name__ == "__main__":
    distributed.launch(train, int(sys.argv[1]), 1, 0, "auto", (sys.argv[2], sys.argv[3:]))
