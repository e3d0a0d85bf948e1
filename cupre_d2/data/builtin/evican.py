"""EVICAN: bright-field and phase-contrast images of 30 cell lines, annotated in part."""

from functools import partial
from pathlib import Path

from cupre_d2.data.builtin.entry import CocoFiles, Part, PublicDataset, Role, Split
from cupre_d2.data.catalog import Record, check_categories
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.image_folder import load_image_folder

_CLASSES = ("Cell", "Nucleus")
_DIFFICULTIES = ("easy", "medium", "difficult")
_TRAIN_IMAGES = "evican/Images/EVICAN_train2019"


def _load(root: Path, files: CocoFiles) -> list[Record]:
    records, categories = load_coco_json(root / files.json_file, root / files.image_root, files.locate)
    check_categories(root / files.json_file, categories, _CLASSES)
    return records


def _load_unlabeled(root: Path) -> list[Record]:
    return load_image_folder(root / _TRAIN_IMAGES)


def _json(folder: str, difficulty: str) -> str:
    return f"evican/annotations/instances_{folder}2019_{difficulty and difficulty + '_'}EVICAN2.json"


def _split(role: Role, difficulty: str = "") -> Split:
    folder = "eval" if role == "test" else role
    json_file = _json(folder, difficulty)
    files = CocoFiles(json_file, f"evican/Images/EVICAN_{folder}2019")
    name = f"evican_{role}" + (f"_{difficulty}" if difficulty else "")
    return Split(name, role, (json_file, files.image_root), partial(_load, files=files), None, _CLASSES, files)


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
            Part(_json(folder, difficulty), ("*EVICAN*.zip", "*EVICAN*.tar.gz", "annotations.zip"))
            for folder, difficulty in (("train", ""), ("val", ""), *(("eval", one) for one in _DIFFICULTIES))
        ),
    ),
    image_files=("evican/Images/*/*.jpg",),
    images=4738,
    splits=(
        _split("train"),
        _split("val"),
        *(_split("test", difficulty) for difficulty in _DIFFICULTIES),
        Split("evican_unlabeled", "unlabeled", (_TRAIN_IMAGES,), _load_unlabeled),
    ),
)
