"""What is to be checked: a data set's splits, by path or by name."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cupre_d2.data.builtin import CATALOGUE, CELLS_UNLABELED, Split
from cupre_d2.data.builtin.entry import Role, no_fields
from cupre_d2.data.catalog import CellDataset, Record, cell_dataset, datasets_root
from cupre_d2.data.formats.image_folder import list_images
from cupre_d2.data.formats.mask_images import load_label_images
from cupre_d2.errors import DatasetError

# What a split's name says of its role; a word of it, case aside.
_ROLES: dict[str, Role] = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val"}
_ROLES |= {"valid": "val", "validation": "val", "unlabeled": "unlabeled"}
_LABEL_FOLDERS = ("labels", "masks")


@dataclass(frozen=True)
class CheckedSplit:
    """One split to look at.

    Attributes:
        name: e.g. "livecell_train".
        role: "unlabeled" images may be those of a training split, never of "val" or "test"; "all" counts as training.
        load: reads the records, of any format; None for a COCO JSON, which is read raw, tolerant of every defect.
        json_file, image_root: the COCO JSON and the folder that its file names are relative to; else the folder, or what
            stands for it in findings.
        locate: see `load_coco_json`.
        fields: see `CocoFiles`.
    """

    name: str
    role: Role
    load: Callable[[], list[Record]] | None
    json_file: Path | None
    image_root: Path
    locate: Callable[[Path, str], Path] = Path.joinpath
    fields: Callable[[str], dict[str, Any]] = no_fields

    @property
    def file(self) -> Path:
        """What findings about the split as a whole name."""
        return self.json_file or self.image_root

    @property
    def held_out(self) -> bool:
        """Whether training must not see its images."""
        return self.role in ("val", "test")


def splits_of(target: str, images: Path | None = None) -> list[CheckedSplit]:
    """The splits of a name (of the catalogue, all on disk; one registered split; a set of your own), or else of a path.

    Raises:
        DatasetError: it is neither; or see `splits_of_path`, `splits_of_name`.
    """
    known = {dataset.name for dataset in CATALOGUE} | _splits().keys()
    own = cell_dataset(target)
    if own is not None and images is None:
        return [_of_own(own)]
    if target in known and images is None:
        return splits_of_name(target)
    if Path(target).exists():
        return splits_of_path(Path(target), images)
    raise DatasetError(
        f"{target}: no such file or folder, nor a data set; expected a path or one of {', '.join(sorted(known))}"
    )


def splits_of_name(name: str) -> list[CheckedSplit]:
    """The splits on disk of a data set of the catalogue, or the one split of that name.

    Of a data set as a whole, splits that choose anew from others (LIVECell's cell types, BBBC038's known and unknown
    types) are left out: their images would be checked twice and be found to leak.

    Raises:
        DatasetError: the split, or every split of the set, is missing on disk.
    """
    root = datasets_root()
    if name in _splits():
        split = _splits()[name]
        if split.missing(root) is not None:
            split.records()
        return [_of_split(split, root)]
    dataset = next(dataset for dataset in CATALOGUE if dataset.name == name)
    present = [split for split in dataset.splits if split.missing(root) is None]
    if not present:
        dataset.splits[0].records()
    return [_of_split(split, root) for split in present if not split.derived]


def splits_of_path(path: Path, images: Path | None = None) -> list[CheckedSplit]:
    """The splits of a COCO JSON or a folder.

    A folder may hold COCO files (one split each, so that leaks between them are found), `images` and `labels` or
    `masks` (label images), or images (unlabeled). The images of a COCO JSON are in `images`, if given; else in the
    folder `images` beside it, if there is one; else beside it. Roles are taken from the names: a file
    "my_val.json" is a validation split.

    Raises:
        DatasetError: the path is none of these, or has no JSON to which `images` could belong.
    """
    path = path.expanduser().absolute()
    if path.is_file():
        return [_of_json(path, images)]
    if not path.is_dir():
        raise DatasetError(f"{path}: no such file or folder; expected a COCO JSON or a folder of images")
    files = sorted(path.glob("*.json"))
    if files:
        return [_of_json(file, images) for file in files]
    if images:
        raise DatasetError(f"{path}: no COCO JSON in it; expected one, as --images says where a JSON's images are")
    for name in _LABEL_FOLDERS:
        if (path / "images").is_dir() and (path / name).is_dir():
            load = partial(load_label_images, path / "images", path / name)
            return [CheckedSplit(path.name, _role(path.name), load, None, path)]
    folder = path / "images" if (path / "images").is_dir() else path
    files = list_images(folder)
    return [CheckedSplit(path.name, "unlabeled", partial(_unread, files), None, folder)]


def _splits() -> dict[str, Split]:
    splits = (*(split for dataset in CATALOGUE for split in dataset.splits), CELLS_UNLABELED)
    return {split.name: split for split in splits}


def _of_split(split: Split, root: Path) -> CheckedSplit:
    if split.coco is None:
        return CheckedSplit(split.name, split.role, split.records, None, root / (split.requires or ("",))[0])
    files = split.coco
    return CheckedSplit(
        split.name, split.role, None, root / files.json_file, root / files.image_root, files.locate, files.fields
    )


def _of_own(own: CellDataset) -> CheckedSplit:
    role, reading = _role(own.name), dict(own.reading)
    file = own.annotations or own.labels or own.counts
    # What a record says of its image's page and channels, a COCO JSON cannot.
    if own.coco_json and not reading.keys() & {"page", "channels"}:
        return CheckedSplit(own.name, role, None, own.coco_json, own.images, fields=lambda file_name: reading)
    if file is None and len(own.classes or ()) < 2:
        files = list_images(own.images)
        return CheckedSplit(own.name, role, lambda: [one | reading for one in _unread(files)], None, own.images)
    return CheckedSplit(own.name, role, own.load, None, file or own.images)


def _of_json(file: Path, images: Path | None) -> CheckedSplit:
    if images is not None:
        root = images.expanduser().absolute()
    else:
        root = file.parent / "images" if (file.parent / "images").is_dir() else file.parent
    return CheckedSplit(file.stem, _role(file.stem), None, file, root)


def _unread(files: list[Path]) -> list[Record]:
    """Records that name their files only: a reader that opens them would end at the first broken one."""
    return [{"file_name": str(file), "image_id": file.name} for file in files]


def _role(name: str) -> Role:
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return next((_ROLES[word] for word in words if word in _ROLES), "all")
