"""Every public data set of the catalogue, on made-up files in its publisher's layout, and on the real ones at hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.builtin.livecell import LIVECELL
from cupre_d2.data.curation.placing import overview
from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import DatasetError

# Two cells that touch, the second with a hole.
LABELS = np.zeros((16, 16), np.uint16)
LABELS[1:5, 1:6] = 1
LABELS[5:12, 1:12] = 2
LABELS[7:9, 4:6] = 0
AREAS = [20, 77 - 4]


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".tif":
        tifffile.imwrite(file, pixels, photometric="minisblack")
    else:
        Image.fromarray(pixels).save(file)


def grey(dtype: type = np.uint8, shape: tuple[int, ...] = (16, 16)) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def make_evican(root: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 16, "width": 16}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n, "bbox": [1, 1, 5, 4], "segmentation": [[1, 1, 6, 1, 6, 5, 1, 5]]}
            for n in (1, 2)
        ],
        "categories": [{"id": 1, "name": "Cell"}, {"id": 2, "name": "Nucleus"}],
    }
    for split, names in {"train": ("",), "val": ("",), "eval": ("easy_", "medium_", "difficult_")}.items():
        save(root / f"evican/Images/EVICAN_{split}2019/a.jpg", grey())
        for name in names:
            file = root / f"evican/annotations/instances_{split}2019_{name}EVICAN2.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content))


def make_ctc(root: Path) -> None:
    for folder, truth in (("DIC-C2DH-HeLa", "ST"), ("Fluo-N2DH-SIM+", "GT")):
        for video in ("01", "02"):
            for frame in range(2):
                save(root / f"ctc/{folder}/{video}/t{frame:03d}.tif", grey(np.uint16))
                save(root / f"ctc/{folder}/{video}_{truth}/SEG/man_seg{frame:03d}.tif", LABELS)
                save(root / f"ctc/{folder}/{video}_GT/TRA/man_track{frame:03d}.tif", LABELS)


def make_bbbc039(root: Path) -> None:
    folder = root / "bbbc039"
    for name, file in {"a": "training", "b": "validation", "c": "test"}.items():
        save(folder / f"images/{name}.tif", grey(np.uint16))
        rgba = np.zeros((16, 16, 4), np.uint8)
        rgba[..., 0], rgba[..., 3] = LABELS, 255
        save(folder / f"masks/{name}.png", rgba)
        (folder / "metadata").mkdir(exist_ok=True)
        (folder / f"metadata/{file}.txt").write_text(f"{name}.png\n")


def make_bbbc005(root: Path) -> None:
    for count in (1, 14):
        name = f"SIMCEPImages_A01_C{count}_F1_s01_w2.TIF"
        save(root / f"bbbc005/BBBC005_v1_images/{name}", grey())
        if count == 1:
            save(root / f"bbbc005/BBBC005_v1_ground_truth/{name}", (LABELS == 1).astype(np.uint8) * 255)


def make_tnbc(root: Path) -> None:
    for patient in ("01", "02"):
        save(root / f"tnbc/Slide_{patient}/{patient}_1.png", grey(shape=(16, 16, 3)))
        mask = LABELS.astype(np.uint8).copy()
        mask[5] = 0
        save(root / f"tnbc/GT_{patient}/{patient}_1.png", np.minimum(mask, 1) * 255)


def make_em(root: Path) -> None:
    for role in ("training", "testing"):
        save(root / f"em/{role}.tif", grey(shape=(3, 16, 16)))
        save(root / f"em/{role}_groundtruth.tif", np.repeat((LABELS == 1)[None].astype(np.uint8) * 255, 3, axis=0))


def make_sstem(root: Path) -> None:
    save(root / "sstem/stack1/raw/00.tif", grey())
    save(root / "sstem/stack1/mitochondria/00.png", (LABELS == 2).astype(np.uint8) * 255)


def make_chok1(root: Path) -> None:
    folder = root / "chok1/phase_contrast/natural"
    for name in ("a", "b"):
        save(folder / f"{name}.png", grey())
    (folder / "train.csv").write_text("a.png,7\nb.png,0\n")


def make_rosette(root: Path) -> None:
    for folder in ("train/rosette", "train/non_rosette", "unlabeled"):
        save(root / f"rosette/{folder}/{Path(folder).name}.jpg", grey())


MAKE: dict[str, Callable[[Path], None]] = {
    name.removeprefix("make_"): function for name, function in list(globals().items()) if name.startswith("make_")
}


@pytest.fixture()
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def areas(record: dict) -> list[int]:
    from pycocotools import mask as mask_util

    return sorted(int(mask_util.area(annotation["segmentation"])) for annotation in record["annotations"])


@pytest.mark.parametrize(
    ("dataset", "name", "images", "expected"),
    [
        ("ctc", "ctc_dic_c2dh_hela_01", 2, AREAS),
        ("ctc", "ctc_fluo_n2dh_sim_02", 2, AREAS),
        ("bbbc039", "bbbc039_val", 1, AREAS),
        ("bbbc005", "bbbc005", 1, AREAS[:1]),
        ("tnbc", "tnbc", 2, [20, 62]),
        ("em", "em_test", 3, AREAS[:1]),
        ("sstem", "sstem", 1, AREAS[1:]),
    ],
)
def test_masks(root: Path, dataset: str, name: str, images: int, expected: list[int]) -> None:
    MAKE[dataset](root)
    records = get_records(name)
    assert [areas(record) for record in records] == [expected] * images
    assert len({record["image_id"] for record in records}) == images
    assert all((record["height"], record["width"]) == (16, 16) for record in records)
    assert len(get_records(f"{name}_50pct")) == max(1, round(images / 2))


def test_evican(root: Path) -> None:
    make_evican(root)
    for name in ("evican_train", "evican_val", "evican_test_easy", "evican_test_medium", "evican_test_difficult"):
        (record,) = get_records(name)
        assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1]
        assert MetadataCatalog.get(name).thing_classes == ["Cell", "Nucleus"]


def test_evican_of_other_classes(root: Path) -> None:
    make_evican(root)
    file = root / "evican/annotations/instances_val2019_EVICAN2.json"
    file.write_text(file.read_text().replace("Cell", "?").replace("Nucleus", "Cell").replace("?", "Nucleus"))
    with pytest.raises(DatasetError, match=r"val2019_EVICAN2.json: field categories: \['Nucleus', 'Cell'\].*\['Cell', 'Nu"):
        get_records("evican_val")


def test_pages_of_a_stack(root: Path) -> None:
    make_em(root)
    assert [record["page"] for record in get_records("em_train")] == [0, 1, 2]


def test_counts(root: Path) -> None:
    make_bbbc005(root)
    make_chok1(root)
    assert sorted(record["count"] for record in get_records("bbbc005_counts")) == [1, 14]
    assert [record.get("count") for record in get_records("chok1_pc_natural_train")] == [7, None]
    save(root / "bbbc005/BBBC005_v1_images/other.TIF", grey())
    with pytest.raises(DatasetError, match="other.TIF: no count in the file name"):
        get_records("bbbc005_counts")


def test_classes(root: Path) -> None:
    make_rosette(root)
    labels = {Path(record["file_name"]).stem: record["label"] for record in get_records("rosette_train")}
    assert labels == {"rosette": 0, "non_rosette": 1}
    assert [Path(record["file_name"]).stem for record in get_records("rosette_unlabeled")] == ["unlabeled"]


def test_union_of_unlabeled_images(root: Path) -> None:
    make_ctc(root)
    make_evican(root)
    make_bbbc039(root)
    records = get_records("cells_unlabeled")
    sources = {Path(record["file_name"]).relative_to(root).parts[0] for record in records}
    assert len(records) == 2 * 2 * 2 + 1 and sources == {"ctc", "evican"}
    assert not any("annotations" in record for record in records)


def test_every_name_is_registered_and_unique() -> None:
    names = [split.name for dataset in CATALOGUE for split in dataset.splits]
    assert len(names) == len(set(names))
    assert set(names) <= set(DatasetCatalog.list())


def test_readme_names_everything() -> None:
    readme = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    for dataset in CATALOGUE:
        assert dataset.name in readme
        assert dataset.licence in readme, dataset.name
        for part in dataset.parts:
            assert Path(part.path).parts[0] + "/" in readme


def test_overview(root: Path) -> None:
    make_rosette(root)
    text = overview(root)
    (line,) = [line for line in text.splitlines() if line.startswith("rosette ")]
    assert "in part" in line and "1 / 11,250" in line and "rosette_train rosette_unlabeled" in line
    assert "there is no rosette/test" in text
    assert "bbbc039: BBBC039" in text and "prepare_dataset.py bbbc039" in text


def test_what_is_optional_may_be_absent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in LIVECELL.parts:
        if not part.optional:
            (root / part.path).mkdir(parents=True)
    monkeypatch.setattr(type(LIVECELL), "count_images", lambda self, root: self.images)
    text = overview(root)
    (line,) = [line for line in text.splitlines() if line.startswith("livecell ")]
    assert "present" in line and "LIVECell_dataset_size_split" not in text


@pytest.mark.real_data
@pytest.mark.skipif("DETECTRON2_DATASETS" not in os.environ, reason="DETECTRON2_DATASETS is not set")
@pytest.mark.parametrize(
    ("name", "images", "instances"),
    [
        ("ctc_dic_c2dh_hela_01", 25, None),
        # Two of the 15 frames have no silver truth.
        ("ctc_phc_c2dl_psc_01", 13, None),
        ("ctc_fluo_n2dl_hela_02", 8, None),
        ("sstem", 20, None),
        ("tnbc", 14, None),
        ("bbbc005", 120, 120),
        ("bbbc005_counts", 120, 0),
        ("rosette_train", 274 + 844, 0),
    ],
)
def test_real_data(name: str, images: int, instances: int | None) -> None:
    records = get_records(name)
    assert len({record["file_name"] for record in records}) == len(records) == images
    found = sum(len(record.get("annotations", ())) for record in records)
    assert found == instances if instances is not None else found > images
