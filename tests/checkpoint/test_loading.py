import builtins
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.layers import FrozenBatchNorm2d
from detectron2.solver import WarmupParamScheduler
from fvcore.common.checkpoint import PeriodicCheckpointer
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from cupre_d2.checkpoint.checkpointer import CellCheckpointer
from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.errors import CheckpointError


def network(classes: int = 3) -> nn.Module:
    """With keys such as a detector's: backbone.bottom_up.*, backbone.fpn.*, head.*."""
    backbone = nn.ModuleDict(
        {
            "bottom_up": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            "fpn": nn.Sequential(nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)),
        }
    )
    return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(4, classes)})


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def random_weights(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of the model's keys and shapes with other values, as a file holds it (with its metadata)."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for key, value in state.items():
        state[key] = torch.rand(value.shape, generator=generator).mul(9).to(value.dtype)
    return state


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w, "iteration": 3}], ids=["bare", "under model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_loads_all_weights(wrap, prefix: str, tmp_path: Path) -> None:
    model = network()
    weights = random_weights(model)
    path = saved(wrap({prefix + key: value for key, value in weights.items()}), tmp_path / "weights.pth")
    report = load_initial_weights(model, path)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert report.matched == list(weights)
    assert not report.missing and not report.unexpected and not report.mismatched


def test_a_prefix_that_not_all_keys_share_is_kept(tmp_path: Path) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    weights = random_weights(model)
    load_initial_weights(model, saved(weights, tmp_path / "weights.pth"))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_other_shapes_missing_and_unexpected_keep_their_initialisation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network(classes=3)
    weights = random_weights(network(classes=5))
    del weights["backbone.bottom_up.0.bias"]
    weights["queue.keys"] = torch.zeros(2)
    before = copied(model)
    with caplog.at_level(logging.INFO):
        report = load_initial_weights(model, saved(weights, tmp_path / "weights.pth"))
    assert report.mismatched == [("head.weight", (5, 4), (3, 4)), ("head.bias", (5,), (3,))]
    assert report.missing == ["backbone.bottom_up.0.bias"]
    assert report.unexpected == ["queue.keys"]
    kept = {"head.weight", "head.bias", "backbone.bottom_up.0.bias"}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in kept else weights[key]), key
        assert (key in report.matched) == (key not in kept)
    assert f"{len(report.matched)} of the model's {len(before)} tensors loaded" in caplog.text
    assert "loaded; 2 of another shape, 1 missing in the file; 1 in the file not used" in caplog.text
    (table,) = [record.getMessage() for record in caplog.records if "head.weight" in record.getMessage()]
    assert "2 tensors of another shape" in table and "(5, 4)" in table and "(3, 4)" in table
    assert "backbone.bottom_up.0.bias" in caplog.text and "queue.keys" in caplog.text


def test_only_prefix(tmp_path: Path) -> None:
    model = network()
    # Detectron2's frozen batch norm resets statistics that a state dict lacks; the rest of the model must not change.
    model.get_buffer("backbone.fpn.1.running_mean").fill_(3)
    weights, before = random_weights(model), copied(model)
    report = load_initial_weights(model, saved(weights, tmp_path / "weights.pth"), only_prefix="backbone.bottom_up.")
    for key, value in model.state_dict().items():
        loaded = key.startswith("backbone.bottom_up.")
        assert torch.equal(value, weights[key] if loaded else before[key]), key
        assert (key in report.matched) == loaded
    assert not report.missing and not report.unexpected


def test_only_prefix_needs_a_match_of_its_own(tmp_path: Path) -> None:
    weights = {key: value for key, value in random_weights(network()).items() if "bottom_up" not in key}
    path = saved(weights, tmp_path / "weights.pth")
    load_initial_weights(network(), path)
    with pytest.raises(CheckpointError, match=r"no key under backbone\.bottom_up\. fits .*expected backbone.bottom_up.0.w"):
        load_initial_weights(network(), path, only_prefix="backbone.bottom_up.")


def test_no_matching_key_is_refused_with_what_was_expected_and_found(tmp_path: Path) -> None:
    model = network()
    before = copied(model)
    weights = {f"layer1.{n}.weight": torch.zeros(1) for n in range(7)}
    with pytest.raises(CheckpointError) as caught:
        load_initial_weights(model, saved(weights, tmp_path / "foreign.pth"))
    message = str(caught.value)
    assert "foreign.pth: no key fits the model; expected backbone.bottom_up.0.weight, " in message
    assert "found layer1.0.weight, layer1.1.weight, layer1.2.weight, layer1.3.weight, layer1.4.weight and 2 more" in message
    assert "\n" not in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"iteration": 3}, {"model": {"a": 3}}])
def test_files_without_weights_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no key fits the model; .* found none"):
        load_initial_weights(network(), saved(content, tmp_path / "weights.pth"))


def test_only_other_shapes_is_refused(tmp_path: Path) -> None:
    path = saved(nn.Linear(5, 3).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"every key has another shape .* weight \(3, 5\), expected \(2, 2\)"):
        load_initial_weights(nn.Linear(2, 2), path)


def test_constants_are_neither_loaded_nor_reported(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("pixel_mean", torch.ones(3))
    constants = {"pixel_mean": torch.zeros(3), "pixel_std": torch.zeros(3), "detector.pixel_std": torch.zeros(3)}
    constants["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3)
    report = load_initial_weights(model, saved({**nn.Linear(2, 2).state_dict(), **constants}, tmp_path / "weights.pth"))
    assert report.matched == ["weight", "bias"]
    assert not report.missing and not report.unexpected
    assert torch.equal(model.get_buffer("pixel_mean"), torch.ones(3))
    with pytest.raises(CheckpointError, match="no key fits"):
        load_initial_weights(model, saved(constants, tmp_path / "constants.pth"))


def test_values_take_the_models_dtype_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    weights = {key: value.half() for key, value in random_weights(model).items()}
    load_initial_weights(model, saved(weights, tmp_path / "weights.pth"))
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, weights["weight"].float())
    assert "2 tensors converted from torch.float16 to torch.float32" in caplog.text


def test_entries_that_are_no_tensors_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_initial_weights(nn.Linear(2, 2), saved({**nn.Linear(2, 2).state_dict(), "epoch": 3}, tmp_path / "weights.pth"))
    assert "1 entries are no tensors and are left out: epoch" in caplog.text


def test_a_field_model_that_is_no_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="field model is a list; expected a dict of weights"):
        load_initial_weights(network(), saved({"model": [1]}, tmp_path / "weights.pth"))


def test_a_model_zoo_pickle_loads_as_a_torch_file_does(tmp_path: Path) -> None:
    model, other = network(), network()
    weights = random_weights(model)
    arrays = {key: value.numpy() for key, value in weights.items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=2))
    report = load_initial_weights(model, str(tmp_path / "zoo.pkl"))
    CellCheckpointer(other).load(str(tmp_path / "zoo.pkl"))
    assert report.matched == list(weights)
    for loaded in (model, other):
        assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "url", ["https://example.invalid/w.pth", "http://example.invalid/w.pth", "detectron2://ImageNet/R-50.pkl"]
)
def test_nothing_is_downloaded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = CellCheckpointer(network())
    monkeypatch.setattr(checkpointer, "path_manager", None)
    for load in (lambda: load_initial_weights(network(), url), lambda: checkpointer.load(url)):
        with pytest.raises(CheckpointError, match="nothing is downloaded; fetch the file and give its path"):
            load()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    def load(path: str) -> None:
        load_initial_weights(network(), path)

    resume = CellCheckpointer(network()).load
    for path, read in ((tmp_path / "none.pth", load), (tmp_path / "none.pth", resume), (tmp_path, resume)):
        with pytest.raises(CheckpointError, match="no such checkpoint file"):
            read(str(path))
    with pytest.raises(CheckpointError, match="is an empty folder; expected a model package"):
        load(str(tmp_path))


def test_too_little_memory_is_no_broken_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = CellCheckpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001")

    def load(path: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpointer, "load", load)
    with pytest.raises(torch.OutOfMemoryError):
        checkpointer.resume()


def test_a_checkpointer_works_on_after_a_failure(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    weights = random_weights(model)
    (tmp_path / "broken.pth").write_bytes(b"x")
    checkpointer = CellCheckpointer(model)
    with pytest.raises(CheckpointError):
        checkpointer.load(str(tmp_path / "broken.pth"))
    assert checkpointer.load(saved(weights, tmp_path / "bare.pth")) == {}
    assert torch.equal(model.weight, weights["weight"])


class TinyTrainer(TrainerBase):
    """Detectron2's trainer with its optimizer, schedule hook and checkpoints, as DefaultTrainer puts them together."""

    def __init__(self, folder: Path, max_iter: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.stepper = SimpleTrainer(LossOf(self.model), [{"x": torch.rand(4, 3)}] * 100, optimizer)
        multiplier = WarmupParamScheduler(MultiStepParamScheduler([1, 0.1], milestones=[3], num_updates=6), 0.5, 0.2)
        self.schedule = hooks.LRScheduler(optimizer, hooks.LRMultiplier(optimizer, multiplier, max_iter=6))
        self.checkpointer = CellCheckpointer(self.model, str(folder), trainer=self)
        self.register_hooks([self.schedule, hooks.PeriodicCheckpointer(self.checkpointer, 2)])
        self.max_iter = max_iter

    def run_step(self) -> None:
        self.stepper.iter = self.iter
        self.stepper.storage = self.storage
        self.stepper.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "stepper": self.stepper.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.stepper.load_state_dict(state_dict["stepper"])

    def run(self) -> None:
        self.checkpointer.resume_or_load("", resume=True)
        self.train(self.iter + 1 if self.checkpointer.has_checkpoint() else 0, self.max_iter)


class LossOf(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": (self.model(batch["x"]) - 1).square().mean()}


class Stop(HookBase):
    def after_step(self) -> None:
        if self.trainer.iter == 3:
            raise KeyboardInterrupt


def test_a_detectron2_trainer_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    """Model, optimizer, schedule and iteration: the interrupted run ends with the weights of the other."""
    whole = TinyTrainer(tmp_path / "whole", 6)
    interrupted = TinyTrainer(tmp_path / "interrupted", 6)
    for folder in ("whole", "interrupted"):
        (tmp_path / folder).mkdir()
    whole.run()
    interrupted.register_hooks([Stop()])
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = TinyTrainer(tmp_path / "interrupted", 6)
    resumed.run()
    assert resumed.start_iter == 4
    assert resumed.stepper.optimizer.param_groups[0]["lr"] == whole.stepper.optimizer.param_groups[0]["lr"]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    files = {path.name for path in (tmp_path / "interrupted").iterdir()}
    assert files == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
        "last_checkpoint",
    }
    assert (tmp_path / "interrupted" / "last_checkpoint").read_text() == "model_final.pth"


def test_periodic_checkpointer_keeps_the_last(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    periodic = PeriodicCheckpointer(CellCheckpointer(model, str(tmp_path), optimizer=optimizer), 1, 4, max_to_keep=2)
    for iteration in range(4):
        periodic.step(iteration, best=0.5)
    kept = {path.name for path in tmp_path.glob("*")}
    assert kept == {"model_0000002.pth", "model_0000003.pth", "model_final.pth", "last_checkpoint"}
    other = nn.Linear(2, 2)
    rest = CellCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 3 and rest["best"] == 0.5
    assert torch.equal(other.weight, model.weight)


def test_only_the_process_that_saves_writes(tmp_path: Path) -> None:
    CellCheckpointer(nn.Linear(2, 2), str(tmp_path), save_to_disk=False).save("model")
    assert not list(tmp_path.iterdir())


def partly(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """torch.save writes half and fails."""

    def save(content: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_checkpoint_before(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(2, 2)
    checkpointer = CellCheckpointer(model, str(tmp_path))
    checkpointer.save("model", iteration=1)
    before = (tmp_path / "model.pth").read_bytes()
    for name in ("model", "model_2"):
        refused = CheckpointError if isinstance(error, OSError) else type(error)
        with monkeypatch.context() as patch, pytest.raises(refused):
            partly(patch, error)
            checkpointer.save(name, iteration=2)
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "last_checkpoint"}
    assert (tmp_path / "model.pth").read_bytes() == before
    assert checkpointer.resume_or_load("")["iteration"] == 1


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is read at every write, sync and rename: last_checkpoint always names a file that loads."""
    model = nn.Linear(2, 2)
    checkpointer = CellCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0", iteration=0)
    seen: list[int] = []

    def look() -> None:
        seen.append(CellCheckpointer(nn.Linear(2, 2), str(tmp_path)).resume_or_load("")["iteration"])

    def watched(function):  # noqa: ANN001, ANN202
        def call(*args: Any, **kwargs: Any) -> Any:
            look()
            result = function(*args, **kwargs)
            look()
            return result

        return call

    with monkeypatch.context() as patch:
        for module, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
            patch.setattr(module, name, watched(getattr(module, name)))
        checkpointer.save("model_1", iteration=1)
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1
    look()
    assert seen[-1] == 1


def test_nothing_is_opened_for_writing_under_its_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real_open = builtins.open

    def noting_open(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", noting_open)
    CellCheckpointer(nn.Linear(2, 2), str(tmp_path)).save("model")
    written = {Path(path).name for path in opened if path.startswith(str(tmp_path))}
    assert written == {"model.pth.partial", "last_checkpoint.partial"}
