"""The map of a latent space, on the tests' small images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from matplotlib import image as png

from cupre_d2.engine.single_phase import build_network
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import CheckpointError
from cupre_d2.experiments.deep_clustering import latents
from cupre_d2.experiments.deep_clustering.figures import draw_map

SETS = ("bbbc038_known_test", "bbbc038_unknown")


@pytest.fixture()
def cfg(small_datasets: Path, slim: list[str], monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    monkeypatch.setattr(latents, "SAMPLES", 12)
    _, (stage,) = load_stages("configs/mini/stages/clustering.yaml", [*slim, "MODEL.WEIGHTS", "unet.pth"])
    return stage.cfg


@pytest.fixture()
def checkpoint(cfg: CfgNode, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"model": build_network(cfg).state_dict()}, tmp_path / "unet.pth")
    return tmp_path / "unet.pth"


def test_map(cfg: CfgNode, checkpoint: Path, tmp_path: Path) -> None:
    found = latents.latent_map(cfg, checkpoint, SETS)
    assert found.positions.shape == (12, 2) and np.isfinite(found.positions).all()
    assert found.thumbnails.shape == (12, 48, 48, 3) and found.thumbnails.dtype == np.uint8
    assert found.cell_types[:6] == ["dim"] * 6 and set(found.cell_types[6:]) == {"odd0", "odd1"}
    again = latents.latent_map(cfg, checkpoint, SETS)
    assert np.array_equal(found.positions, again.positions) and np.array_equal(found.thumbnails, again.thumbnails)
    draw_map(found, tmp_path / "map.png")
    # Frames in the colours of three types, C0 to C2.
    drawn = {tuple(colour) for colour in np.rint(png.imread(tmp_path / "map.png")[..., :3] * 255).astype(int).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= drawn


def test_weights_of_another_network(cfg: CfgNode, checkpoint: Path) -> None:
    torch.save({"model": {"head.weight": torch.zeros(3)}}, checkpoint)
    with pytest.raises(CheckpointError):
        latents.latent_map(cfg, checkpoint, SETS)
