"""The paper's own setting, synchronised batch norms and mixed precision, in two processes.

SyncBN itself is nn.SyncBatchNorm, which cannot be run on a CPU ("expected input tensor to be on GPU"): `get_norm` makes a
plain batch norm of it there. What stands in for it is naiveSyncBN, Detectron2's of the same statistics, which gloo can
run; for float16 stands bfloat16.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import roi_heads
from detectron2.utils import comm
from torch import nn

from cupre_d2.engine import DetectionTrainer
from cupre_d2.engine.stages import load_stages
from cupre_d2.modeling.layers import get_norm
from cupre_d2.randomness import seed_everything
from tests.engine.two_processes import first_ones

STAGE = "configs/mini/stages/coco_pretrain.yaml"
SETTINGS: dict[str, Any] = {
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "MODEL.FPN.NORM": "naiveSyncBN",
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.005,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.MAX_ITER": 4,
    "SEED": 5,
}
PRECISIONS = {"float32": [], "bfloat16": ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]}


def trained(opts: list[str]) -> dict[str, torch.Tensor]:
    """The weights and buffers of a detector after four steps with four images each, over all processes."""
    seed_everything(0)
    _, (stage,) = load_stages(STAGE, opts)
    stage.folder.mkdir(parents=True, exist_ok=True)
    trainer = DetectionTrainer(stage.cfg)
    trainer.train_stage([])
    return trainer.model.state_dict()


def _train(rank: int, folder: str, opts: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    # Deep in bfloat16 a mean square less a squared mean is rounding: 30² ± 4 for a variance of 1.
    values = (torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(rank)) + 30).bfloat16()
    torch.save((values, get_norm("naiveSyncBN", 8)(values)), f"{folder}/norm_{rank}")
    rpn.subsample_labels = roi_heads.subsample_labels = first_ones
    for name, more in PRECISIONS.items():
        torch.save(trained([*opts, *more, "OUTPUT_DIR", f"{folder}/two_{name}"]), f"{folder}/{name}_{rank}")
    comm.synchronize()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_synchronised_norms(
    small_datasets: Path, slim: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opts = [*slim, *(str(item) for pair in SETTINGS.items() for item in pair)]
    torch.multiprocessing.spawn(_train, (str(tmp_path), opts), nprocs=2)
    monkeypatch.setattr(rpn, "subsample_labels", first_ones)
    monkeypatch.setattr(roi_heads, "subsample_labels", first_ones)
    one = trained([*opts, "OUTPUT_DIR", str(tmp_path / "one")])

    ends = {name: [torch.load(tmp_path / f"{name}_{rank}") for rank in range(2)] for name in PRECISIONS}
    for states in ends.values():
        for name, value in states[0].items():
            assert value.isfinite().all() and torch.equal(value, states[1][name]), name
    for name, value in one.items():
        # Detectron2 takes a variance in by n of n values, torch by n - 1.
        if not name.endswith(("running_var", "num_batches_tracked")):
            torch.testing.assert_close(ends["float32"][0][name], value, rtol=1e-4, atol=1e-4, msg=name)

    values, normalised = (
        torch.cat(parts) for parts in zip(*(torch.load(tmp_path / f"norm_{r}") for r in (0, 1)), strict=True)
    )
    assert normalised.dtype == torch.bfloat16
    torch.testing.assert_close(normalised.float(), nn.BatchNorm2d(8)(values.float()), rtol=0.02, atol=0.02)
