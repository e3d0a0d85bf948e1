from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from cupre_d2.checkpoint.loading import convert_weights, load_initial_weights
from cupre_d2.errors import CheckpointError
from cupre_d2.modeling.backbone.resnest import ResNeSt


def detector(depth: int = 14) -> nn.Module:
    """Of which only the backbone matters here."""
    return nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": ResNeSt(depth)})})


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "resnest14.pth"
    torch.save(timm.create_model("resnest14d").state_dict(), path)
    return path


@pytest.mark.parametrize("compared", [True, False])
def test_converted_weights_load_as_the_originals_do(compared: bool, imagenet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    conversion = convert_weights(str(imagenet), str(out), detector() if compared else None)
    assert conversion.report.kind == "ResNeSt of resnest or timm"
    assert (conversion.settings["DEPTH"], conversion.settings["RADIX"], conversion.fitting) == (14, 2, "")
    direct, converted, detectron2s = detector(), detector(), detector()
    load_initial_weights(direct, str(imagenet))
    assert not load_initial_weights(converted, str(out)).missing
    DetectionCheckpointer(detectron2s).load(str(out))
    for model in (converted, detectron2s):
        assert all(torch.equal(value, direct.state_dict()[key]) for key, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]


def test_what_no_key_tells_survives(tmp_path: Path) -> None:
    """Of a converted ResNet it is still known that its stride lies in the 3x3 convolution."""
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "theirs.pth")
    convert_weights(str(tmp_path / "theirs.pth"), str(tmp_path / "out.pth"))
    stages = ResNet.make_default_stages(50, norm="BN", stride_in_1x1=True)
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": ResNet(BasicStem(), stages)})})
    with pytest.raises(CheckpointError, match="STRIDE_IN_1X1: False in the file, True in the model"):
        load_initial_weights(model, str(tmp_path / "out.pth"))


def test_a_models_values_are_not_needed(imagenet: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = detector()
    report = convert_weights(str(imagenet), str(tmp_path / "out.pth"), model).report
    assert not report.missing


def test_the_tables_rows(imagenet: Path, tmp_path: Path) -> None:
    model = detector()
    model["head"] = nn.Linear(2, 2)
    table = convert_weights(str(imagenet), str(tmp_path / "out.pth"), model).report.table(shown=2)
    rows = {row[:22].strip(): row[22:].split() for row in table.splitlines() if row[:22].strip()}
    matched = len(ResNeSt(14).state_dict())
    assert rows["matched"] == [str(matched), "backbone.bottom_up.stem.conv1_1.weight"]
    assert f"and {matched - 2} more" in table
    assert rows["missing in the file"] == ["2", "head.weight"]
    assert rows["left out"] == ["2", "fc.weight"]
    assert rows["shape mismatched"] == rows["unexpected in the file"] == ["0"]


def test_what_does_not_fit_is_not_written(imagenet: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="MODEL.RESNETS.DEPTH: 14 in the file, 26 in the model"):
        convert_weights(str(imagenet), str(tmp_path / "out.pth"), detector(26))
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match="linear.pth: holds weight, bias; expected a detector of Detectron2, a ResNet"):
        convert_weights(str(tmp_path / "linear.pth"), str(tmp_path / "out.pth"))


def test_an_existing_file_is_not_touched(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_text("mine")
    with pytest.raises(CheckpointError, match="out.pth: exists; give another name"):
        convert_weights(str(imagenet), str(tmp_path / "out.pth"))
    assert (tmp_path / "out.pth").read_text() == "mine"
    with pytest.raises(CheckpointError, match="no folder .*nowhere to write to"):
        convert_weights(str(imagenet), str(tmp_path / "nowhere" / "out.pth"))
