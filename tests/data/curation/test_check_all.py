"""`check all`, on a catalogue of made-up files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cupre_d2.data.curation.checking import check_all
from cupre_d2.errors import DatasetError


@pytest.fixture()
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def write_rosettes(root: Path) -> None:
    for index, folder in enumerate(("train/rosette", "train/non_rosette", "unlabeled")):
        (root / "rosette" / folder).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), index, np.uint8)).save(root / f"rosette/{folder}/{index}.png")


def test_table_and_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rosettes(root)
    assert check_all(root / "new/v1.2") == 0
    table = capsys.readouterr().out
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["rosette"]
    assert sorted(file.name for file in (root / "new").iterdir()) == ["v1.2.json", "v1.2.md"]
    assert table in (root / "new/v1.2.md").read_text()
    found = json.loads((root / "new/v1.2.json").read_text())["data sets"]
    assert found == {"rosette": {"exit_code": 0, "findings": {}}}
    (root / "rosette/unlabeled/broken.png").write_bytes(b"")
    assert check_all() == 2 and "1 unusable file" in capsys.readouterr().out


def test_results_that_cannot_be_written_are_noticed_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rosettes(root)
    (root / "file").touch()
    monkeypatch.setattr("cupre_d2.data.curation.checking.check_splits", lambda splits: pytest.fail("checked"))
    with pytest.raises(DatasetError, match="file/new: cannot be made"):
        check_all(root / "file/new/x")


def test_nothing_there(root: Path) -> None:
    with pytest.raises(DatasetError, match="no data set of the catalogue"):
        check_all()
