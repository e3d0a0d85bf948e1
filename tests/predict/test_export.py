from pathlib import Path

import pytest
import torch

from cupre_d2.errors import CheckpointError
from cupre_d2.predict.export import export
from cupre_d2.predict.package import load_package
from tests.predict.test_package import packed  # noqa: F401


def image() -> torch.Tensor:
    return torch.arange(3 * 96 * 128).reshape(3, 96, 128) % 251


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "ending"), [("watershed", "ts"), pytest.param("watershed", "pt2", marks=pytest.mark.slow), ("detector", "ts")]
)
def test_says_the_same_without_the_package(packed, kind: str, ending: str, tmp_path: Path) -> None:  # noqa: ANN001, F811
    package = load_package(str(packed[kind][0]), device="cpu")
    file = tmp_path / f"model.{ending}"
    export(package, file, image())
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    load = torch.jit.load(str(file)) if ending == "ts" else torch.export.load(str(file)).module()
    with torch.no_grad():
        found = load(image().float())
        if kind == "watershed":
            (expected,) = package.model.probabilities([{"image": image()}])
            assert torch.allclose(found, torch.from_numpy(expected), atol=1e-5)
        else:
            (instances,) = package.model.inference([{"image": image()}], do_postprocess=False)
            boxes, _, _, scores, _ = found
            assert (
                len(scores) and torch.allclose(boxes, instances.pred_boxes.tensor) and torch.equal(scores, instances.scores)
            )


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_is_said(packed, tmp_path: Path) -> None:  # noqa: ANN001, F811
    package = load_package(str(packed["detector"][0]), device="cpu")
    with pytest.raises(CheckpointError, match=r"expected an ending of .ts, .pt2; ONNX is not written") as refused:
        export(package, tmp_path / "model.onnx", image())
    with pytest.raises(CheckpointError, match=r"cannot be exported \(\w+: .*, in .*\)") as refused:
        export(package, tmp_path / "model.pt2", image())
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())
