"""Targets by name, and data sets of one's own by a YAML file."""

from pathlib import Path

import pytest

from cupre_d2.data import get_records, register_cell_dataset
from cupre_d2.data.targets import Target, register_dataset_file, target
from cupre_d2.errors import DatasetError
from tests.conftest import write_coco


@pytest.fixture()
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of one's own; the names of its data sets are this test's, as the catalogue lives as long as the process."""
    name = request.node.name.replace("[", "_").replace("]", "")
    write_coco(tmp_path / "images/a", tmp_path / "a.json", ["1.png", "2.png"], {1: "cell"})
    (tmp_path / "cells.yaml").write_text(
        f"{name}_a: {{for: train, images: images/a, annotations: a.json}}\n"
        f"{name}_b: {{for: [val, test], images: images/a, annotations: a.json}}\n"
        f"{name}_c: {{for: unlabeled, images: images/a, normalize: false}}\n"
    )
    return tmp_path


def test_a_file_is_a_target(lab: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    name = request.node.name
    # Paths are relative to the file, from wherever it is read.
    monkeypatch.chdir("/")
    found = register_dataset_file(lab / "cells.yaml")
    assert found is not None and found.name == "cells"
    assert found.datasets("train") == (f"{name}_a",)
    assert found.datasets("train", "50pct_seed1") == (f"{name}_a_50pct_seed1",)
    assert found.datasets("val", "50pct") == found.datasets("test") == (f"{name}_b",)
    assert found.datasets("unlabeled") == (f"{name}_c",)
    assert len(get_records(f"{name}_a")) == 2
    assert get_records(f"{name}_c")[0]["percentiles"] is None
    assert register_dataset_file(str(lab / "cells.yaml")) == found


def test_names_without_a_purpose_are_no_target(lab: Path) -> None:
    (lab / "names.yaml").write_text("only_a_name_train: {images: images/a, annotations: a.json}\n")
    assert register_dataset_file(lab / "names.yaml") is None
    assert target("only_a_name").datasets("train") == ("only_a_name_train",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not a readable YAML file of data sets"),
        ("", "expected an entry a data set"),
        ("- images", "expected an entry a data set"),
        ("a: images", "a: expected its fields"),
        ("a: {labels: x}", "a: expected its fields, .* images is needed"),
        ("a: {images: x, lables: y}", "a: field lables: unknown; did you mean labels"),
        ("a: {images: x, for: training}", "a: field for: 'training'; expected train, val, test, unlabeled or a list"),
        ("a: {images: [x]}", r"a: field images: \['x'\]; expected str"),
        ("a: {images: x, page: true}", "a: field page: True; expected int"),
        ("a: {images: x, page: }", "a: field page: None; expected int"),
        ("a: {images: x, labels: y, counts: z}", "labels and counts are given; expected at most one"),
        ("livecell_train: {images: x}", "'livecell_train' is registered already"),
        ("a: !!python/object/apply:os.system ['true']", "not a readable YAML file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        register_dataset_file(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere.yaml: not a readable YAML file"):
        register_dataset_file(tmp_path / "nowhere.yaml")


def test_what_stands_in_for_a_missing_role() -> None:
    assert Target("x", {"train": ("a",), "test": ("b",)}).datasets("val") == ("b",)
    assert Target("x", {"train": ("a",)}).datasets("unlabeled", "5pct") == ("a",)
    assert Target("x", {"train": ("a",)}).datasets("val") == ()
    with pytest.raises(DatasetError, match="target x: no data set is for train"):
        Target("x", {"val": ("a",)}).datasets("train")
    with pytest.raises(DatasetError, match="target:trian: did you mean train"):
        Target("x", {}).datasets("trian")


def test_published_sets_learn_from_all_unlabeled_cells() -> None:
    assert target("livecell_a172").roles["train"] == ("livecell_a172_train",)
    assert target("bbbc038").datasets("unlabeled") == ("cells_unlabeled",)
    assert target("bbbc038_types").datasets("val") == ("bbbc038_known_test", "bbbc038_unknown")
    with pytest.raises(DatasetError, match="PIPELINE.TARGET 'livecel': no such target; did you mean livecell"):
        target("livecel")


def test_registered_in_python_by_its_name(tmp_path: Path) -> None:
    register_cell_dataset("by_convention_train", tmp_path)
    register_cell_dataset("by_convention_unlabeled", tmp_path)
    assert target("by_convention").datasets("unlabeled") == ("by_convention_unlabeled",)
