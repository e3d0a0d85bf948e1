"""What the README and docs/ tell people to type works as it stands there (docs/detectron2.md has a test of its own)."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cupre_d2.commands import check
from cupre_d2.commands.train import parse_args
from cupre_d2.data import get_records
from cupre_d2.data.targets import dataset_names
from cupre_d2.engine import pipeline
from tests.conftest import draw_discs, write_coco

PAGES = {file.name: file.read_text() for file in (Path("README.md"), *sorted(Path("docs").glob("*.md")))}
ROOT = Path.cwd()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


def commands(beginning: str) -> list[list[str]]:
    """The words behind a beginning, of each line of all pages that has it, once."""
    lines = "".join(block for page in PAGES for block in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if line.startswith(beginning + " ")]
    return [list(words) for words in dict.fromkeys(tuple(words[len(beginning.split()) :]) for words in found)]


@pytest.fixture()
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the README's my_cells.yaml describes."""
    (description,) = [block for block in blocks("README.md", "yaml") if "my_cells.yaml" in block]
    (tmp_path / "my_cells.yaml").write_text(description)
    write_coco(tmp_path / "images/train", tmp_path / "train.json", [f"{i}.png" for i in range(4)], {1: "cell"})
    write_coco(tmp_path / "images/val", tmp_path / "val.json", ["v.png"], {1: "cell"}, first_id=50)
    for number, folder in enumerate(("plate/images", "plate/labels", "plate/more_images")):
        (tmp_path / folder).mkdir(parents=True)
        image, _ = draw_discs(7 + number // 2)
        labels = (image > 100).astype(np.uint8)
        Image.fromarray(labels if folder.endswith("labels") else image).save(tmp_path / folder / "a.png")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in dataset_names(tmp_path / "my_cells.yaml"):
        for catalogue in (DatasetCatalog, MetadataCatalog):
            catalogue.pop(name, None)


TRAIN = [*commands("python tools/train_net.py"), *commands("cupre-d2 train")]


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAIN, ids=" ".join)
def test_training(words: list[str], lab: Path, small_datasets: Path, slim: list[str]) -> None:
    args = parse_args(words)
    pipeline.run(pipeline.prepare(args.config_file, [*args.opts, *slim, "OUTPUT_DIR", "out"]))
    assert (lab / "out/results.json").is_file() and (lab / "out/report.html").is_file()


def test_checking(lab: Path) -> None:
    assert ["my_cells.yaml"] in commands("cupre-d2 check")
    # The discs drawn here may overlap, which is a warning.
    assert check.main(["my_cells.yaml"]) < 2


@pytest.mark.slow
def test_own_cells_from_python(lab: Path, small_datasets: Path, slim: list[str]) -> None:
    (program,) = blocks("own_cells.md", "python")
    scope: dict = {"small": dict(zip(slim[0::2], slim[1::2], strict=True))}
    exec(program.replace("overrides)", "small | overrides)"), scope)
    assert "segm" in scope["metrics"]["cells_val"]
    assert "annotations" not in get_records("cells_more")[0]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    links = re.findall(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)", PAGES[page])
    missing = [link for link, _ in links if not (folder / link).exists()]
    assert not missing
    names = re.findall(r"`((?:configs|docs|cupre_d2|tools|tests)/[\w./-]+)`", PAGES[page])
    assert not [name for name in names if not (ROOT / name.rstrip("/")).exists() and not re.search(r"ARM|TYPE|TARGET", name)]
