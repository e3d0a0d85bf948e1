"""cupre-d2 predict, with a stand-in for the network."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from cupre_d2.commands import predict
from cupre_d2.predict.canvas import Segmentation
from cupre_d2.predict.run import FILE


class Bright:
    """What is bright is a cell."""

    fingerprint = "bright"
    made: list[dict[str, Any]] = []

    def __init__(self, model: Any, **options: Any) -> None:
        self.made.append(options)

    def __call__(self, page: Any) -> Segmentation:
        labels, count = ndimage.label(page.read()[:, :, 0] > 100)
        boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)]
        table = pd.DataFrame(boxes, columns=["top", "left", "bottom", "right"])
        table = table.assign(label=range(1, count + 1), score=0.5, category=0, edge=False, stitched=False)
        return Segmentation(
            labels.astype(np.uint32), table.assign(area=np.bincount(labels.ravel(), minlength=count + 1)[1:])
        )


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="none", META_ARCHITECTURE="SemanticWatershed"))
    monkeypatch.setattr(predict, "load_model", lambda *_: SimpleNamespace(cfg=cfg, channels=(1,)))
    monkeypatch.setattr(predict, "Segmenter", Bright)
    monkeypatch.setattr(Bright, "made", [])
    stack = np.zeros((3, 40, 50), np.uint16)
    stack[0, 3:9, 4:9] = stack[0, 20:30, 20:30] = stack[1, 8:20, 9:15] = 200
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/time.tif", stack, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "in/dyes.tif", stack[:2], imagej=True, metadata={"axes": "CYX"})
    return tmp_path / "in"


def test_a_folder(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "text.tif").write_text("Notes")
    out = images.parent / "out"
    words = ["model", str(images), "--output", str(out)]
    assert predict.main(words) == 1
    said = capsys.readouterr()
    assert f"{images}/text.tif: cannot be read as an image" in said.err
    assert said.out.splitlines() == [
        f"images: 4, cells: 4, in {out}",
        "images without a cell: 1 (time_p2)",
        "failed: 1, as said above",
    ]
    assert tifffile.imread(out / "labels/time_p0.tif").max() == 2
    # Of its two channels the one that the model was trained on.
    np.testing.assert_array_equal(
        tifffile.imread(out / "labels/dyes.tif") > 0, tifffile.imread(images / "dyes.tif")[1] > 100
    )
    assert pd.read_csv(out / "counts.csv")["count"].sum() == 4
    assert (out / "report.html").is_file() and (out / FILE).is_file()

    (images / "text.tif").unlink()
    assert predict.main(words) == 0
    assert capsys.readouterr().out.startswith("images: 4 (4 done before), cells: 4,")


def test_options(images: Path) -> None:
    out = images.parent / "out"
    options = "--diameter 31.5 --tta --tile 512 --batch 2 --channels 0 --format labels,rois --format coco"
    assert predict.main(["model", f"{images}/dye*", "--output", str(out), *options.split()]) == 0
    assert Bright.made == [{"diameter": 31.5, "tile": 512, "batch": 2, "tta": True, "folder": out}]
    assert sorted(file.name for file in out.iterdir() if file.is_dir()) == ["coco", "labels", "rois"]
    assert tifffile.imread(out / "labels/dyes.tif").max() == 2
    assert predict.parse_args(["model", "in", "--output", "out", "--diameter", "auto"]).diameter == "auto"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "an INPUT is needed"),
        (["in", "--channels", "1,2"], "expected one or three numbers from 0"),
        (["in", "--diameter", "big"], "argument --diameter: expected pixels, or auto"),
    ],
)
def test_what_cannot_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        predict.main(["model", *words, "--output", "out"])
    assert left.value.code == 2 and said in capsys.readouterr().err
