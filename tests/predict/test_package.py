import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.checkpoint.packages import FACTS, WEIGHTS, hash_file
from cupre_d2.engine import packaging, pipeline
from cupre_d2.engine.eval_only import prepare_evaluation
from cupre_d2.engine.results import StageRecord
from cupre_d2.engine.stages import Stage, load_stages
from cupre_d2.errors import CheckpointError, ConfigError
from cupre_d2.predict.package import Package, load_package, write_package
from tests.conftest import SLIM

DETECTOR, WATERSHED = "configs/mini/scratch_bbbc038_5pct.yaml", "configs/mini/stages/unet.yaml"
METRICS = {"bbbc038_val": {"segm": {"AP": 12.5, "APl": float("nan")}}}


def config_of(file: str, *more: str) -> CfgNode:
    opts = [str(item) for pair in SLIM.items() for item in pair]
    _, (stage,) = load_stages(file, [*opts, "PIPELINE.TARGET", "bbbc038", *more])
    return stage.cfg


@pytest.fixture(scope="module")
def packed(dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, CfgNode, dict[str, Any]]]:
    """A package of each kind, untrained, with its config and weights."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(dataset_root))
        for file in (DETECTOR, WATERSHED):
            cfg = config_of(file)
            weights = build_model(cfg).state_dict()
            folder = tmp_path_factory.mktemp("run") / "model_package"
            kind = write_package(folder, cfg, weights, METRICS)["kind"]
            made[kind] = folder, cfg, weights
    return made


@pytest.fixture()
def copy(packed: dict[str, Any], tmp_path: Path) -> Path:
    """The detector's, to be damaged."""
    return Path(shutil.copytree(packed["detector"][0], tmp_path / "package"))


def predict(model: torch.nn.Module) -> list[torch.Tensor]:
    image = torch.arange(3 * 64 * 64).reshape(3, 64, 64) % 251
    with torch.no_grad():
        (output,) = model.eval()([{"image": image.to(torch.uint8), "height": 64, "width": 64}])
    instances = output["instances"]
    return [instances.scores, instances.pred_boxes.tensor, instances.pred_masks]


@pytest.mark.parametrize("kind", ["detector", "watershed"])
def test_predicts_as_the_run_with_no_other_file(
    packed: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cfg, weights = packed[kind]
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    package = load_package(str(copied), device="cpu")
    assert (package.kind, package.classes) == (kind, ("cell",))
    assert package.cfg.INPUT == cfg.INPUT and package.cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN
    assert all(torch.equal(value, weights[key]) for key, value in package.model.state_dict().items())
    run = build_model(cfg)
    run.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(predict(package.model), predict(run), strict=True))


def test_knows_what_it_was_trained_on(packed: dict[str, Any]) -> None:
    folder, _, weights = packed["detector"]
    package = load_package(str(folder.parent), device="cpu")
    assert package.folder == folder
    # Discs of radii 5 to 10.
    assert 10 < package.cell_diameter < 21
    assert package.heights == package.widths == (96, 96, 96) and package.channels is None
    train, val = package.facts["training"]["datasets"]
    assert (train["name"], train["for"], train["images"]) == ("bbbc038_train_5pct", "TRAIN", 1)
    assert (val["name"], val["for"], val["annotations"], val["licence"]) == ("bbbc038_val", "TEST", 12, "CC0")
    assert package.facts["evaluation"]["metrics"]["bbbc038_val"]["segm"] == {"AP": 12.5, "APl": None}
    assert package.facts["weights"]["sha256"] == hash_file(folder / WEIGHTS)
    assert package.facts["weights"]["tensors"] == len(weights)
    card = (folder / "README.md").read_text()
    assert f"{package.cell_diameter:.1f} pixels" in card and "| bbbc038_val | TEST | 2 | 12 | CC0 |" in card


def test_half_precision(packed: dict[str, Any], small_datasets: Path, tmp_path: Path) -> None:
    folder, cfg, weights = packed["watershed"]
    facts = write_package(tmp_path / "half", cfg, weights, {}, half=True)
    assert facts["weights"]["dtype"] == "float16"
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.6 * (folder / WEIGHTS).stat().st_size
    loaded = load_package(str(tmp_path / "half"), device="cpu").model.state_dict()
    assert all(value.dtype == weights[key].dtype for key, value in loaded.items())
    assert all(torch.allclose(value, weights[key], rtol=1e-3, atol=1e-6) for key, value in loaded.items())


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        facts = yaml.safe_load((folder / FACTS).read_text())
        change(facts)
        (folder / FACTS).write_text(yaml.safe_dump(facts))

    return damage


def write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / FACTS).write_text(text)  # type: ignore[return-value]


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1])


def flip(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def not_safetensors(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04N.")
    edit(lambda facts: facts["weights"].update(bytes=4, sha256=hash_file(folder / WEIGHTS)))(folder)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nformat_version: *b\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"safetensors: \d+ bytes, package.yaml names \d+: damaged"),
        (flip, "SHA-256 is not the one that package.yaml names: damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors: missing"),
        (not_safetensors, "no safetensors file"),
        (write("{"), "package.yaml: damaged"),
        (write(""), "no field format_version; expected 1"),
        (write("format_version: !!python/object/apply:os.system ['touch /tmp/hacked']"), "damaged .*could not determine"),
        (write(BOMB), "an alias"),
        (write("[" * 5000), "package.yaml: damaged"),
        (write(" " * (2 << 20)), "2097152 bytes; expected at most"),
        (edit(lambda facts: facts.update(format_version=2)), "format_version: 2; this cupre_d2 reads version 1"),
        (edit(lambda facts: facts.update(code="x")), "field code: unknown; "),
        (edit(lambda facts: facts.pop("images")), "field images: missing"),
        (edit(lambda facts: facts.update(config=[])), "field config: list; expected dict"),
        (edit(lambda facts: facts.update(kind="moco")), "field kind: 'moco'; expected detector or watershed"),
        (edit(lambda facts: facts.update(kind="watershed")), "META_ARCHITECTURE 'GeneralizedRCNN': expected SemanticWat"),
        (edit(lambda facts: facts.update(classes=["a", "b"])), r"classes: \['a', 'b'\]; expected 1 names"),
        (edit(lambda facts: facts["config"]["MODEL"].update(META_ARCHITECTURE="os.system")), "'os.system': expected Gener"),
        (edit(lambda facts: facts["config"]["MODEL"].update(BASE="x")), "config: MODEL.BASE: no such config key; did"),
        (edit(lambda facts: facts["config"]["MODEL"].update(PIXEL_STD="(" * 300)), "field config: "),
        (edit(lambda facts: facts["config"]["MODEL"]["FPN"].update(OUT_CHANNELS=96000)), "config: not of the network of mo"),
        (edit(lambda facts: facts["config"]["MODEL"]["BACKBONE"].update(NAME="eval")), "config: MODEL: no network"),
        (edit(lambda facts: facts["config"].update(SOLVER={})), "config: SOLVER: expected sections MODEL"),
        (edit(lambda facts: facts["config"].update(_BASE_="/etc/passwd")), "config: _BASE_: expected sections MODEL"),
        (edit(lambda facts: facts["thresholds"].update({"OUTPUT_DIR": "/"})), "thresholds: OUTPUT_DIR '/': expected"),
        (edit(lambda facts: facts["thresholds"].popitem()), "thresholds: MODEL.ROI_HEADS.* None: expected numbers"),
        (
            edit(lambda facts: facts["thresholds"].update({"MODEL.ROI_HEADS.NMS_THRESH_TEST": 2})),
            "config: MODEL.ROI_HEADS.NMS_THRESH_TEST 2.0: expected a number from 0 to 1",
        ),
        (edit(lambda facts: facts["images"].update(cell_diameter=-1.0)), "images: cell_diameter -1.0; expected pixels"),
        (edit(lambda facts: facts["images"].update(heights=[1, 2])), "images: heights .1, 2.; expected smallest"),
    ],
)
def test_refused_in_one_line(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as refused:
        load_package(str(copy), device="cpu")
    assert "\n" not in str(refused.value) and str(copy) in str(refused.value)


def test_of_a_kind_that_the_caller_cannot_use(copy: Path) -> None:
    with pytest.raises(CheckpointError, match="field kind: 'detector'; expected watershed"):
        load_package(str(copy), kinds=["watershed"])


def test_says_what_was_found_instead(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model_final.pth").touch()
    found = {
        "nowhere": "no such folder",
        "empty": "is an empty folder",
        "model_final.pth": "is a checkpoint",
        "package/package.yaml": "is a file of a package; give its folder",
        "package/model.safetensors": "is weights alone",
        ".": "is the folder of a training run that has written no package",
    }
    for name, said in found.items():
        with pytest.raises(CheckpointError, match=f"{name}: {said}.*; expected a model package") as refused:
            load_package(f"{tmp_path}/{name}")
        assert "\n" not in str(refused.value)
    (copy / FACTS).unlink()
    with pytest.raises(CheckpointError, match=r"is a damaged package, without package.yaml"):
        load_package(str(copy))


def test_a_run_of_before_is_not_overwritten_by_half_a_package(
    packed: dict[str, Any], small_datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cfg, weights = packed["watershed"]
    folder = tmp_path / "model_package"
    write_package(folder, cfg, weights, {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cupre_d2.checkpoint.packages.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_package(folder, cfg, weights, METRICS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model_package"]


def test_networks_without_masks_are_none(packed: dict[str, Any], tmp_path: Path) -> None:
    cfg = packed["detector"][1].clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = False
    with pytest.raises(ConfigError, match="no masks"):
        write_package(tmp_path, cfg, {}, {})


def run(folder: Path, *opts: str) -> Package:
    overrides = {**SLIM, **dict(zip(opts[::2], opts[1::2], strict=True)), "OUTPUT_DIR": str(folder)}
    pipeline.train(DETECTOR, overrides)
    return load_package(str(folder), device="cpu")


def test_of_a_pipeline_and_from_it(small_datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, packaged with tuned thresholds, trained on from the package; the worse of two models is not packaged."""
    first = run(tmp_path / "first", "TEST.TUNING.ENABLED", "True")
    results = json.loads((tmp_path / "first/results.json").read_text())
    final = torch.load(tmp_path / "first/1_finetune/model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, final[key]) for key, value in first.model.state_dict().items())
    assert results["thresholds"] == first.facts["evaluation"]["thresholds"]
    assert first.facts["tuning"]["images"] == 2 and first.thresholds == first.facts["tuning"]["thresholds"]
    assert not (tmp_path / "first/1_finetune/before.json").exists()
    report = (tmp_path / "first/report.html").read_text()
    assert "Model package" in report and "of 2 validation images" in report
    made = (first.folder / FACTS).stat().st_mtime_ns
    run(tmp_path / "first")
    assert (first.folder / FACTS).stat().st_mtime_ns == made

    better = {"before": 1.0, "after": 2.0}
    scores = iter([better["after"], better["before"]])
    monkeypatch.setattr(packaging, "_score", lambda *_: next(scores))
    second = run(tmp_path / "second", "MODEL.WEIGHTS", str(first.folder))
    before = json.loads((tmp_path / "second/1_finetune/before.json").read_text())
    assert before["metrics"]["bbbc038_val"]["segm"]["AP"] == results["metrics"]["bbbc038_val"]["segm"]["AP"]
    assert all(torch.equal(value, final[key]) for key, value in second.model.state_dict().items())
    assert second.facts["before"]["kept"] == "start"
    assert second.facts["evaluation"]["metrics"] == first.facts["evaluation"]["metrics"]
    assert "the model of before" in (tmp_path / "second/report.html").read_text()
    assert prepare_evaluation(DETECTOR, ["MODEL.WEIGHTS", str(first.folder)]).weights == str(first.folder)


@pytest.mark.parametrize(
    ("before", "after", "higher", "kept"),
    [(10.0, 20.0, True, "final"), (20.0, 10.0, True, "start"), (20.0, 10.0, False, "final"), (10.0, 10.0, True, "final")]
    + [(10.0, None, True, "start"), (None, None, True, "final"), (None, 10.0, False, "final")],
)
def test_the_better_one_is_kept(
    packed: dict[str, Any], tmp_path: Path, before: float | None, after: float | None, higher: bool, kept: str
) -> None:
    cfg = packed["detector"][1].clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.TEST.BEST.HIGHER = str(tmp_path), higher
    metrics = [{"bbbc038_val": {"segm": {"AP": value}}} for value in (before, after)]
    (tmp_path / "before.json").write_text(json.dumps({"weights": "start.pth", "metrics": metrics[0]}))
    assert packaging._before(Stage("finetune", cfg), metrics[1])["kept"] == kept


def test_weights_of_another_head_are_not_evaluated(
    packed: dict[str, Any], small_datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = packed["detector"][1].clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(tmp_path), str(packed["detector"][0])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    stage = Stage("finetune", cfg)
    trainer = pipeline.trainer_class(stage)(cfg)
    trainer.resume_or_load()
    assert trainer.loaded.matched and trainer.loaded.mismatched
    packaging.measure_start(trainer)
    assert not (tmp_path / "before.json").exists()


def test_the_encoder_of_a_package_starts_another_network(packed: dict[str, Any]) -> None:
    model = build_model(packed["watershed"][1])
    report = load_initial_weights(model, str(packed["detector"][0]))
    assert all(key.startswith("backbone.bottom_up.") for key in report.matched) and report.matched


def test_images_that_are_gone_leave_it_out(
    packed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = packed["detector"][1].clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(tmp_path / "1_finetune")
    stage = Stage("finetune", cfg)
    record = StageRecord("finetune", "DetectionTrainer", 1.0, 2, METRICS)
    record.write(stage.folder)
    torch.save({"model": packed["detector"][2]}, stage.final_checkpoint)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    packaging.package(tmp_path, [stage], [record])
    assert "model_package: dataset 'bbbc038_train" in caplog.text and not (tmp_path / "model_package").exists()
