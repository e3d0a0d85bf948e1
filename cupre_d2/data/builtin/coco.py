"""Sets annotated by COCO JSONs: COCO 2017 itself, and EVICAN (bright field and phase contrast, 30 cell lines, in part)."""

from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog

from cupre_d2.data.builtin.entry import CocoFiles, Part, PublicDataset, Role, Split
from cupre_d2.data.catalog import Record, check_categories
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.image_folder import load_image_folder

# ----------------------------------------------------------------------------------------------------------- COCO 2017

# Detectron2 registers its names; the entry says what they need.


def _coco_json(role: str) -> str:
    return f"coco/annotations/instances_{role}2017.json"


def _coco_split(role: Role, images: int) -> Split:
    name, json_file, folder = f"coco_2017_{role}", _coco_json(role), f"coco/{role}2017"
    files = CocoFiles(json_file, folder)
    return Split(name, role, (json_file, folder), lambda root: DatasetCatalog.get(name), images, (), files)


COCO = PublicDataset(
    name="coco",
    title="COCO 2017",
    task="instances",
    licence="annotations CC BY 4.0; each image under the licence that its entry in the JSON names",
    citation="Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
    homepage="cocodataset.org",
    get="2017 Train images, 2017 Val images, 2017 Train/Val annotations; about 20 GB",
    parts=(
        Part("coco/train2017", ("train2017.zip",)),
        Part("coco/val2017", ("val2017.zip",)),
        *(Part(_coco_json(role), ("annotations_trainval2017.zip",)) for role in ("train", "val")),
    ),
    image_files=("coco/train2017/*.jpg", "coco/val2017/*.jpg"),
    images=123_287,
    splits=(_coco_split("train", 118_287), _coco_split("val", 5_000)),
)

# -------------------------------------------------------------------------------------------------------------- EVICAN

_CLASSES = ("Cell", "Nucleus")
_DIFFICULTIES = ("easy", "medium", "difficult")
_TRAIN_IMAGES = "evican/Images/EVICAN_train2019"


def _load_evican(root: Path, files: CocoFiles) -> list[Record]:
    records, categories = load_coco_json(root / files.json_file, root / files.image_root, files.locate)
    check_categories(root / files.json_file, categories, _CLASSES)
    return records


def _evican_json(folder: str, difficulty: str) -> str:
    return f"evican/annotations/instances_{folder}2019_{difficulty and difficulty + '_'}EVICAN2.json"


def _evican_split(role: Role, difficulty: str = "") -> Split:
    folder = "eval" if role == "test" else role
    json_file = _evican_json(folder, difficulty)
    files = CocoFiles(json_file, f"evican/Images/EVICAN_{folder}2019")
    name = f"evican_{role}" + (f"_{difficulty}" if difficulty else "")
    return Split(name, role, (json_file, files.image_root), partial(_load_evican, files=files), None, _CLASSES, files)


EVICAN = PublicDataset(
    name="evican",
    title="EVICAN (two classes: cell, nucleus)",
    task="instances",
    licence="CC BY 4.0",
    citation="Schwendy et al., EVICAN: a balanced dataset for algorithm development in cell and nucleus segmentation, 2020",
    homepage="edmond.mpdl.mpg.de, EVICAN",
    get="the train, val and eval images and the annotations of EVICAN2",
    parts=(
        *(
            Part(f"evican/Images/EVICAN_{folder}2019", (f"EVICAN_{folder}2019*.zip", f"EVICAN_{folder}2019*.tar.gz"))
            for folder in ("train", "val", "eval")
        ),
        *(
            Part(_evican_json(folder, difficulty), ("*EVICAN*.zip", "*EVICAN*.tar.gz", "annotations.zip"))
            for folder, difficulty in (("train", ""), ("val", ""), *(("eval", one) for one in _DIFFICULTIES))
        ),
    ),
    image_files=("evican/Images/*/*.jpg",),
    images=4738,
    splits=(
        _evican_split("train"),
        _evican_split("val"),
        *(_evican_split("test", difficulty) for difficulty in _DIFFICULTIES),
        Split("evican_unlabeled", "unlabeled", (_TRAIN_IMAGES,), lambda root: load_image_folder(root / _TRAIN_IMAGES)),
    ),
)
