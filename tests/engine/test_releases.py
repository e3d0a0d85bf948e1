"""Runs that earlier releases left half-finished, one archive a release, each made by its own code: they go on."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.engine import pipeline
from cupre_d2.engine.single_phase import build_network
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[2]
RELEASES = sorted((ROOT / "tests/data/releases").glob("*.tar.xz"))


@pytest.fixture(params=RELEASES, ids=lambda file: file.name.removesuffix(".tar.xz"))
def left(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, str]]:
    """The folder of a run of configs/quickstart.yaml, stopped in its second stage, and its overrides."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    overrides = json.loads((tmp_path / "overrides.json").read_text())
    return tmp_path / overrides["OUTPUT_DIR"], overrides


@pytest.mark.slow
def test_goes_on_to_the_end(left: tuple[Path, dict[str, str]]) -> None:
    folder, overrides = left
    stopped = torch.load(next(folder.glob("2_amt2/model_0*.pth")), weights_only=True)
    before = (folder / "log.txt").read_text()
    metrics = pipeline.train(str(ROOT / "configs/quickstart.yaml"), overrides)
    assert "segm" in metrics["synthetic_cells_val"]
    logged = (folder / "log.txt").read_text().removeprefix(before)
    assert "round 2/2 moco: from iteration 1 of the phase" in logged and "round 1/2" not in logged
    ended = torch.load(folder / "2_amt2/model_final.pth", weights_only=True)
    assert (stopped["iteration"], ended["iteration"]) == (4, 7)
    results = json.loads((folder / "results.json").read_text())
    assert [stage["name"] for stage in results["stages"]] == ["shapes_pretrain", "amt2", "finetune_cells_5pct"]


def test_its_checkpoint_is_read_whole(left: tuple[Path, dict[str, str]]) -> None:
    folder, overrides = left
    _, stages = load_stages(str(ROOT / "configs/quickstart.yaml"), [item for pair in overrides.items() for item in pair])
    report = load_initial_weights(build_network(stages[0].cfg), str(folder / "1_shapes_pretrain/model_final.pth"))
    assert not report.missing and not report.mismatched


def test_what_cannot_go_on_names_the_release(left: tuple[Path, dict[str, str]]) -> None:
    """A stage that has another name now, or another config."""
    folder, overrides = left
    opts = [item for pair in overrides.items() for item in pair]
    with pytest.raises(ConfigError, match=r"SOLVER.BASE_LR .* -> 0.5, made by cupre_d2 0\.1\.0; this is"):
        pipeline.prepare(str(ROOT / "configs/quickstart.yaml"), [*opts, "SOLVER.BASE_LR", "0.5"])
    (folder / "3_finetune_cells_5pct").rename(folder / "3_finetune_bbbc038_5pct")
    with pytest.raises(ConfigError, match=r"another pipeline \(stage 3_finetune_bbbc038_5pct, made by cupre_d2 0\.1\.0; "):
        pipeline.prepare(str(ROOT / "configs/quickstart.yaml"), opts)


def test_a_checkpoint_that_cannot_go_on_names_the_release(left: tuple[Path, dict[str, str]]) -> None:
    """As of SGD under L2-SP, whose parameters are grouped otherwise since 0.2.0."""
    folder, overrides = left
    (checkpoint,) = folder.glob("2_amt2/model_0*.pth")
    content = torch.load(checkpoint, weights_only=True)
    content["trainer"]["phases"]["coco"]["stepper"]["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match=r"made by cupre_d2 0\.1\.0; this is"):
        pipeline.train(str(ROOT / "configs/quickstart.yaml"), overrides)


def test_a_new_run_names_this_release(tmp_path: Path) -> None:
    _, stages = load_stages(str(ROOT / "configs/quickstart.yaml"), ["OUTPUT_DIR", str(tmp_path)])
    pipeline.open_folder(str(tmp_path), stages, stages, restart=False)
    assert (stages[0].folder / "config.yaml").read_text().startswith("# cupre_d2 ")
