"""Deep clustering on the tests' small images: what trains, what stays, resuming, and bad input."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch.nn.modules.batchnorm import _BatchNorm

from cupre_d2.engine import ClusteringTrainer, pipeline
from cupre_d2.engine.stages import load_stages
from cupre_d2.errors import ClusteringError, ConfigError, DatasetError

STAGE = "configs/mini/stages/clustering.yaml"
UNET = {
    "PIPELINE.TARGET": "bbbc038_types",
    "INPUT.MIN_SIZE_TEST": 0,
    "SOLVER.MAX_ITER": 7,
    "SOLVER.STEPS": "(4,)",
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SEED": 3,
}


def options(slim: list[str], more: dict[str, Any]) -> list[str]:
    return [*slim, *(str(item) for pair in {**UNET, **more}.items() for item in pair)]


@pytest.fixture()
def typed(small_datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root whose types a test may change: 14 images of the known one, 6 of others."""
    root = tmp_path / "datasets"
    shutil.copytree(small_datasets / "bbbc038", root / "bbbc038")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


Configure = Callable[..., CfgNode]


@pytest.fixture()
def configure(typed: Path, slim: list[str], tmp_path: Path) -> Configure:
    """Config of the clustering stage, its folder made, on weights that stand for an earlier stage's."""

    def make(folder: str = "run", **more: Any) -> CfgNode:
        opts = options(slim, {key.replace("__", "."): value for key, value in more.items()})
        weights = tmp_path / "unet.pth"
        if not weights.exists():
            _, (stage,) = load_stages("configs/mini/stages/unet.yaml", opts)
            torch.manual_seed(0)
            torch.save({"model": pipeline.trainer_class(stage)(stage.cfg).model.state_dict()}, weights)
        _, (stage,) = load_stages(STAGE, [*opts, "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path / folder)])
        stage.folder.mkdir(parents=True, exist_ok=True)
        return stage.cfg

    return make


def train(cfg: CfgNode, stop_before: int = -1) -> ClusteringTrainer:
    class Killed(Exception):
        pass

    trainer = ClusteringTrainer(cfg)
    trainer.resume_or_load()
    step = trainer.run_step

    def run_step() -> None:
        if trainer.iter == stop_before:
            raise Killed
        step()

    trainer.run_step = run_step  # type: ignore[method-assign]
    with suppress(Killed):
        trainer.train_stage([])
    return trainer


def final(cfg: CfgNode) -> dict[str, Any]:
    return torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)


def test_encoder_moves_and_the_rest_stays_bit_for_bit(configure: Configure) -> None:
    cfg = configure()
    train(cfg)
    before = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    after = final(cfg)["model"]
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("backbone.bottom_up.") for name in moved)
    assert len(moved) > 0.8 * sum(name.startswith("backbone.bottom_up.") for name in before)
    rows = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    logged = {key for row in rows for key in row}
    assert {"total_loss", "cluster_accuracy", "clusters/entropy", "clusters/type_entropy_std"} <= logged


@pytest.mark.parametrize(("period", "stop"), [(0, 1), (0, 5), (3, 3), (3, 5), (2, 5)])
def test_a_run_stopped_anywhere_ends_as_one_that_was_not(configure: Configure, period: int, stop: int) -> None:
    whole = configure("whole", CLUSTERING__PERIOD=period)
    train(whole)
    cfg = configure("stopped", CLUSTERING__PERIOD=period)
    train(cfg, stop_before=stop)
    assert not (Path(cfg.OUTPUT_DIR) / "model_final.pth").exists()
    resumed = train(cfg)
    assert resumed.start_iter == stop // 2 * 2
    one, other = final(whole), final(cfg)
    for part in ("model", "linear", "clusters"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    optimizers = [state["trainer"]["phases"]["clusters"]["stepper"]["optimizer"]["state"] for state in (one, other)]
    assert all(torch.equal(optimizers[0][i]["momentum_buffer"], optimizers[1][i]["momentum_buffer"]) for i in optimizers[0])


def test_rounds_cluster_anew(configure: Configure) -> None:
    labels = []
    trainer = ClusteringTrainer(configure(CLUSTERING__PERIOD=3))
    trainer.resume_or_load()

    class Watch(HookBase):
        def after_step(self) -> None:
            labels.append(trainer._labels.labels)

    trainer.register_hooks([Watch()])
    trainer.train_stage([])
    changed = [not torch.equal(one, other) for one, other in zip(labels, labels[1:], strict=False)]
    assert changed == [False, False, True, False, False, True]
    assert trainer.position() == "round 3/3"


@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(configure: Configure, typed: Path, slim: list[str], tmp_path: Path) -> None:
    cfg = configure("one", CLUSTERING__PERIOD=3)
    train(cfg)
    opts = options(slim, {"CLUSTERING.PERIOD": 3, "MODEL.WEIGHTS": cfg.MODEL.WEIGHTS, "OUTPUT_DIR": tmp_path / "two"})
    command = [sys.executable, "-W", "ignore", "tools/train_net.py", "--num-gpus", "2", "--config-file", STAGE, *opts]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    one, two = final(cfg), torch.load(tmp_path / "two/1_clustering/model_final.pth", weights_only=True)
    assert torch.equal(one["clusters"]["labels"], two["clusters"]["labels"])
    for part in ("model", "linear"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("policy", ["train", "frozen"])
def test_norm_policy(configure: Configure, policy: str) -> None:
    cfg = configure(MODEL__RESNETS__NORM="BN", CLUSTERING__NORM_POLICY=policy, SOLVER__MAX_ITER=2)
    trainer = train(cfg)
    norms = [name for name, module in trainer.model.backbone.named_modules() if isinstance(module, _BatchNorm)]
    before, after = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"], final(cfg)["model"]
    same = [torch.equal(before[f"backbone.{n}.running_mean"], after[f"backbone.{n}.running_mean"]) for n in norms]
    assert norms and all(same) == (policy == "frozen")
    assert any(not torch.equal(before[f"backbone.{n}.weight"], after[f"backbone.{n}.weight"]) for n in norms)


@pytest.mark.parametrize(("algorithm", "clusters"), [("kmeans", 6), ("growing_neural_gas", 8)])
def test_other_algorithms(configure: Configure, algorithm: str, clusters: int) -> None:
    trainer = train(configure(CLUSTERING__ALGORITHM=algorithm, CLUSTERING__CLUSTERS=clusters, SOLVER__MAX_ITER=1))
    assert trainer.classifier.linear.out_features == clusters
    assert 0 <= trainer._labels.labels.min() <= trainer._labels.labels.max() < clusters


def test_pipeline_of_unet_and_clustering(typed: Path, slim: list[str], tmp_path: Path) -> None:
    opts = options(slim, {"SOLVER.MAX_ITER": 2, "OUTPUT_DIR": tmp_path / "out"})
    job = pipeline.prepare("configs/mini/neural_gas_bbbc038.yaml", opts)
    metrics = pipeline.run(job)
    assert list(metrics) == ["bbbc038_known_test", "bbbc038_unknown"]
    assert all({"segm", "labels"} <= scores.keys() and "DSB2018" in scores["labels"] for scores in metrics.values())
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [stage["iterations"] for stage in results["stages"]] == [2, 2]


def test_paper_size_trains_too(typed: Path, tmp_path: Path) -> None:
    opts = options([], {"SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 2, "OUTPUT_DIR": tmp_path / "out"})
    small = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.DEVICE", "cpu"]
    small += ["MODEL.RESNETS.WIDTH_PER_GROUP", "8", "DATALOADER.NUM_WORKERS", "0"]
    pipeline.run(pipeline.prepare("configs/neural_gas_bbbc038.yaml", [*opts, *small]))
    _, (unet, clustering) = load_stages("configs/neural_gas_bbbc038.yaml")
    assert (unet.cfg.SOLVER.OPTIMIZER, unet.cfg.SOLVER.BASE_LR, unet.cfg.SOLVER.IMS_PER_BATCH) == ("LAMB", 0.001, 8)
    assert unet.cfg.INPUT.CELL_AUGMENTATION.SIZE == 256 and unet.cfg.MODEL.RESNETS.DEPTH == 50
    keys, solver = clustering.cfg.CLUSTERING, clustering.cfg.SOLVER
    assert (keys.SAMPLES, keys.COMPONENTS, keys.CROP, keys.PERIOD) == (5000, 32, 128, 0)
    assert (solver.BASE_LR, solver.MOMENTUM, solver.GAMMA, solver.STEPS) == (0.01, 0.5, 0.1, (solver.MAX_ITER // 2,))
    assert solver.MAX_ITER * solver.IMS_PER_BATCH == 20 * keys.SAMPLES


# --------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"CLUSTERING__CLUSTERS": 25}, r"CLUSTERING.CLUSTERS 25: expected at most CLUSTERING.SAMPLES \(24\)"),
        ({"CLUSTERING__COMPONENTS": 25}, r"CLUSTERING.COMPONENTS 25: expected at most .*CLUSTERING.SAMPLES \(24\)"),
        ({"CLUSTERING__CROP": 65}, r"CLUSTERING.CROP 65: expected at most INPUT.CELL_AUGMENTATION.SIZE \(64\)"),
        ({"CLUSTERING__ALGORITHM": "gas"}, "CLUSTERING.ALGORITHM 'gas': expected one of 'kmeans'"),
        (
            {"CLUSTERING__ALGORITHM": "growing_neural_gas", "CLUSTERING__CLUSTERS": 4},
            "CLUSTERING.CLUSTERS 4: growing neural gas starts with 5",
        ),
        ({"CLUSTERING__NORM_POLICY": "eval"}, "CLUSTERING.NORM_POLICY 'eval': expected one of 'train', 'frozen'"),
        ({"INPUT__CELL_AUGMENTATION__SCALE": "(2.0, 0.5)"}, "CELL_AUGMENTATION.SCALE .*: expected two numbers"),
        ({"DATASETS__UNLABELED": "()"}, "DATASETS.UNLABELED: empty; ClusteringTrainer needs unlabeled images"),
        ({"MODEL__META_ARCHITECTURE": "GeneralizedRCNN"}, "ClusteringTrainer retrains SemanticWatershed|MODEL: no network"),
    ],
)
def test_plan_refuses(configure: Configure, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusteringTrainer.plan(configure(**more))


def test_needs_an_earlier_stage(typed: Path, slim: list[str]) -> None:
    _, (stage,) = load_stages(STAGE, options(slim, {}))
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS: empty; ClusteringTrainer needs a segmentation network"):
        ClusteringTrainer.plan(stage.cfg)


def test_type_list_that_names_missing_images(configure: Configure, typed: Path) -> None:
    cfg = configure()
    with (typed / "bbbc038/types.csv").open("a") as file:
        file.write("nowhere,dim\n")
    with pytest.raises(DatasetError, match="types.csv: 1 of 21 images are not in .*, the first nowhere"):
        ClusteringTrainer.plan(cfg)


def test_one_unlabeled_image(configure: Configure, typed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its crops are clustered, and a warning says so."""
    rows = "".join(f"{i:064x},{'dim' if i < 19 else 'odd'}\n" for i in range(20))
    (typed / "bbbc038/types.csv").write_text("image_id,type\n" + rows)
    cfg = configure(SOLVER__MAX_ITER=1)
    with caplog.at_level("WARNING"):
        trainer = train(cfg)
    assert "one unlabeled image" in caplog.text
    assert len(trainer._labels.labels.unique()) > 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"the latents of 24 of 24 samples are not finite, the first that of .*\.png"),
        (0.0, "the latents of all 24 samples are the same"),
    ],
)
def test_encoder_that_is_broken(configure: Configure, value: float, message: str) -> None:
    cfg = configure()
    trainer = ClusteringTrainer(cfg)
    trainer.resume_or_load()
    with torch.no_grad():
        for name, parameter in trainer.model.backbone.named_parameters():
            if ".res5." in name:
                parameter.fill_(value)
    with pytest.raises(ClusteringError, match=message):
        trainer.train_stage([])
